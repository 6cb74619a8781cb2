"""Writes a comparison as one self-contained HTML page."""

from datetime import date
from importlib.metadata import version
from pathlib import Path

from ...data.coco_files import load_annotations
from ...runs.evaluated_run import EvaluatedRun, read_run
from ...visualization.page import Page, write_page
from ...visualization.page_blocks import Section
from ..result import ROLES, ComparedModel, Comparison
from .chart_section import chart_blocks
from .class_section import class_blocks
from .image_section import disagreement_blocks
from .run_sections import command_blocks, excitation_blocks, recipe_blocks
from .score_section import lead_blocks, score_blocks


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
    coco = load_annotations(runs["baseline"][0].annotations)
    first, second = comparison.models
    objects = sum(not item["iscrowd"] for item in coco.anns.values())
    counts = [
        _counted(len(coco.imgs), "image"),
        _counted(objects, "object"),
        _counted(len(coco.cats), "class", "classes"),
    ]
    head, _, rest = comparison.verdict.partition(" (")
    every_run = [run for own in runs.values() for run in own]
    page = Page(
        title=f"{second.name} compared with {first.name}",
        verdict=head,
        about=f"({rest}" if rest else "",
        models={role: f"{role} {_describe(model)}" for role, model in zip(ROLES, comparison.models, strict=True)},
        introduction=f"On {runs['baseline'][0].annotations.name}: {', '.join(counts)}.",
        accent=_better_role(comparison),
        warnings=[f"{note[:1].upper()}{note[1:]}." for note in comparison.notes],
        lead=lead_blocks(comparison),
        sections=[
            Section("Scores", score_blocks(comparison)),
            Section("Classes", class_blocks(comparison)),
            Section("Curves and errors", chart_blocks(comparison, runs)),
            Section("Images that differ most", disagreement_blocks(coco, runs)),
            Section("Excitations", excitation_blocks(every_run)),
            Section("Recipe", recipe_blocks(comparison, runs)),
            Section("Commands", command_blocks(every_run, command)),
        ],
        footer=f"Made on {date.today().isoformat()} by se_detection {version('se_detection')}.",
    )
    write_page(page, path)
    return path


def _read_runs(comparison: Comparison, annotations: Path | None) -> dict[str, list[EvaluatedRun]]:
    paths = {role: [Path(name) for name in comparison.names[role]] for role in ROLES}
    folders = [path for own in paths.values() for path in own if path.is_dir()]
    known = annotations or (read_run(folders[0]).annotations if folders else None)
    return {role: [read_run(path, known) for path in own] for role, own in paths.items()}


def _counted(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def _describe(model: ComparedModel) -> str:
    return f"{model.name}, {model.backbone}" if model.backbone else model.name


def _better_role(comparison: Comparison) -> str:
    difference = comparison.difference["AP"]
    if difference.value is None or not difference.excludes_zero:
        return ""
    return "candidate" if difference.value > 0 else "baseline"
