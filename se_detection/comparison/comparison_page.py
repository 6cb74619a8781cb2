"""Writes a comparison as one self-contained HTML page: prepares the data of `templates/comparison.html.jinja`."""

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..config.timm_config import RESNET_KEYS, TIMM_BUILDERS, TIMM_KEYS
from ..data.coco_files import load_annotations
from ..runs.evaluated_run import EvaluatedRun, read_run
from ..runs.metrics import read_training_curve
from ..runs.record import recorded_commands
from ..runs.run_folder import EXCITATIONS
from ..visualization.embedded_images import SUFFIXES, EmbeddedImage, embed_file
from ..visualization.inline_charts import chart_style, inline_svg
from ..visualization.page import reach, write_page
from .comparison_plots import CHARTS, plot_training
from .disagreement_images import draw_disagreements
from .disagreements import find_disagreements
from .intervals import MIN_IMAGES
from .result import HEADLINE, ROLES, ClassDifference, Comparison
from .side_by_side import confident
from .tables import COLUMNS, RECALLS

# AP comes first here, and AP50 first in the tables.
METRICS = {"AP": "AP", **{key: heading for key, (heading, *_) in (COLUMNS | RECALLS).items()}}
# With more classes, those with intervals and large differences are shown, and the others are folded.
SHOWN = 20
# The config keys in the table of the recipe, and their names there.
RECIPE = {
    "MODEL.WEIGHTS": "initial weights",
    "MODEL.META_ARCHITECTURE": "detector",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.RESNETS.DEPTH": "depth or network",
    "MODEL.RESNETS.NORM": "normalization",
    "MODEL.BACKBONE.FREEZE_AT": "frozen stages",
    "INPUT.MIN_SIZE_TRAIN": "shorter side, training",
    "INPUT.MIN_SIZE_TEST": "shorter side, test",
    "SOLVER.IMS_PER_BATCH": "images in a batch",
    "SOLVER.OPTIMIZER": "optimizer",
    "SOLVER.BASE_LR": "learning rate",
    "SOLVER.LR_SCHEDULER_NAME": "its schedule",
    "SOLVER.MAX_ITER": "iterations",
    "SOLVER.STEPS": "learning rate falls after",
    "SEED": "seed",
}
# The keys of a network of timm instead.
IN_TIMM = {"MODEL.RESNETS.DEPTH": "MODEL.TIMM.NAME", **dict(zip(RESNET_KEYS, TIMM_KEYS, strict=True))}
Rows = list[tuple[str, str, str]]


def write_html_report(
    comparison: Comparison, path: Path, annotations: Path | None = None, command: str | None = None
) -> Path:
    """Writes the result of :func:`compare_runs` as a page, replacing an existing file, and returns its path.

    Args:
        annotations: COCO instances; needed if all runs are results files.
        command: the command line that made the page.

    Raises:
        UserError: a run, an image or a plot can't be read.
    """
    runs = _read_runs(comparison, annotations)
    pair = [runs[role][0] for role in ROLES]
    every_run = [run for role in ROLES for run in runs[role]]
    coco = load_annotations(pair[0].annotations)
    disagreements = find_disagreements(coco, *(confident(run, coco) for run in pair))
    curves = {role: [read_training_curve(run.path) for run in own] for role, own in runs.items()}
    metrics = {key: heading for key, heading in METRICS.items() if key in comparison.runs["baseline"]}
    commands = [(f"Run {run.name}, {what}", line) for run in every_run for what, line in recorded_commands(run.record)]
    commands += [("This page", command)] if command else []
    write_page(
        path,
        "se_detection.comparison",
        "comparison.html.jinja",
        comparison=comparison,
        runs=runs,
        coco=coco,
        objects=sum(not item["iscrowd"] for item in coco.anns.values()),
        headline=[(name, comparison.difference[key]) for key, name in HEADLINE.items()],
        sizes=comparison.backbone_sizes,
        scores=[
            (heading, comparison.baseline[key], comparison.candidate[key], comparison.difference[key])
            for key, heading in metrics.items()
        ],
        metrics=metrics,
        classes=_ordered_classes(comparison),
        class_reach=reach(item.difference for item in comparison.per_class.values()),
        min_images=MIN_IMAGES,
        charts=_charts(comparison, curves),
        evaluations=max(len(curve["ap"]) for own in curves.values() for curve in own),
        leads=[item.lead for item in disagreements],
        differing=draw_disagreements(disagreements, coco, pair),
        excitations={run.name: plots for run in every_run if (plots := _excitations(run))},
        recipe=_recipe_tables(comparison, pair),
        commands=[(label, _folded(line)) for label, line in commands],
    )
    return path


def _read_runs(comparison: Comparison, annotations: Path | None) -> dict[str, list[EvaluatedRun]]:
    paths = {role: [Path(name) for name in comparison.names[role]] for role in ROLES}
    folders = [path for own in paths.values() for path in own if path.is_dir()]
    known = annotations or (read_run(folders[0]).annotations if folders else None)
    return {role: [read_run(path, known) for path in own] for role, own in paths.items()}


def _ordered_classes(comparison: Comparison) -> list[list[tuple[str, ClassDifference]]]:
    """The shown classes and the folded ones, each from the largest gain to the largest loss."""

    def gain(item: tuple[str, ClassDifference]) -> float:
        return item[1].difference.value or 0

    by_size = sorted(comparison.per_class.items(), key=lambda item: (item[1].p_adjusted is None, -abs(gain(item))))
    return [
        sorted(part, key=lambda item: (item[1].difference.value is None, -gain(item)))
        for part in (by_size[:SHOWN], by_size[SHOWN:])
    ]


def _charts(comparison: Comparison, curves: dict[str, Any]) -> dict[str, Markup]:
    """The charts that have data, as SVG."""
    with chart_style():
        figures = {name: draw(comparison) for name, draw in CHARTS.items()}
        figures["training"] = plot_training(comparison, curves)
    return {name: inline_svg(figure, name) for name, figure in figures.items() if figure is not None}


def _excitations(run: EvaluatedRun) -> dict[str, EmbeddedImage]:
    """The plots, then the images, that `se-det analyze excitations` wrote into the run folder."""
    paths = [path for path in run.path.glob(f"{EXCITATIONS}/**/*") if path.suffix in SUFFIXES]
    paths.sort(key=lambda path: (path.parent.name == "pictures", path.stem.lower()))
    return {path.stem: embed_file(path) for path in paths}


def _recipe_tables(comparison: Comparison, pair: list[EvaluatedRun]) -> list[tuple[str, str, Rows]]:
    """Caption, first heading and rows of the differences between the configs, and of both recipes."""
    tables: list[tuple[str, str, Rows]] = [
        (
            f"Differences between the configs: {kind}.",
            "key",
            [(key, _shown(baseline), _shown(candidate)) for key, (baseline, candidate) in keys.items()],
        )
        for kind, keys in comparison.recipe.items()
        if keys
    ]
    if any(run.recipe for run in pair):
        several = max(map(len, comparison.names.values())) > 1
        baseline, candidate = (recipe_settings(run) for run in pair)
        caption = "The recipe (of each model's first run)." if several else "The recipe."
        tables.append((caption, "setting", [(name, baseline[name], candidate[name]) for name in baseline]))
    return tables


def recipe_settings(run: EvaluatedRun) -> dict[str, str]:
    """The settings of a run in words: its training data, the keys of :data:`RECIPE`, device and versions."""
    recipe, data = run.recipe or {}, run.record.get("data", {})
    files = [data.get(name, {}).get("json") or name for name in recipe.get("DATASETS.TRAIN", ())]
    is_timm = recipe.get("MODEL.BACKBONE.NAME") in TIMM_BUILDERS
    keys = {key: IN_TIMM.get(key, key) if is_timm else key for key in RECIPE}
    settings = {name: recipe.get(keys[key], "–") for key, name in RECIPE.items()}
    if recipe.get("SOLVER.LR_SCHEDULER_NAME") == "WarmupCosineLR":
        settings[RECIPE["SOLVER.STEPS"]] = "–"
    record = {what: run.record.get(what, "–") for what in ("device", "versions")}
    evaluated = {"evaluated checkpoint": run.checkpoint or "not recorded"}
    rows = {"training data": files or "–", **settings, **evaluated, **record}
    return {name: _shown(value) for name, value in rows.items()}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value) if value != "" else "none"


def _folded(command: str) -> str:
    """The command with a line for each option."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    options = [place for place, word in enumerate(words) if word.startswith("--")]
    lines = [words[start:end] for start, end in pairwise([0, *options, len(words)])]
    return " \\\n    ".join(shlex.join(line) for line in lines if line)
