"""The model card of a detector: what a stranger must know, from the run's record and its comparison."""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from tabulate import tabulate
from torch import nn

from ..comparison.compare import image_weights, images_by_size
from ..comparison.comparison_page import RECIPE, recipe_settings
from ..comparison.intervals import Difference, estimate
from ..comparison.result import HEADLINE, ROLES
from ..comparison.scores import METRICS, score_run
from ..config.timm_config import backbone_label
from ..data.coco_files import load_annotations, load_results
from ..errors import UserError
from ..files import read_json
from ..modeling.complexity import count_parameters
from ..runs.evaluated_run import EvaluatedRun, read_run

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SAMPLES = 1000
USE = """```python
from se_detection import SEPredictor

predictor = SEPredictor.from_pretrained("USER/NAME")
instances = predictor("street.jpg", score=0.5)
print([predictor.class_names[number] for number in instances.pred_classes], instances.pred_boxes)
```"""
# Paths of the author's machine, and what stands elsewhere in the card.
NOT_SHOWN = ("training data", "evaluated checkpoint", RECIPE["MODEL.META_ARCHITECTURE"])


def write_model_card(
    cfg: CfgNode,
    model: nn.Module,
    classes: list[str],
    weights: Path,
    *,
    license: str = "",
    comparison: Path | str | None = None,
) -> ModelCard:
    """The card of a detector with `weights`; AP and recipe are of the run folder that holds them, if it is one.

    Raises:
        UserError: the file of the comparison is not one.
    """
    run = _evaluated(weights)
    metrics = _metrics(run) if run else {}
    label, data = backbone_label(cfg), _data(run)
    results = [
        EvalResult("object-detection", "coco-format", data["evaluated on"], key, round(found.value, 2))
        for key, found in metrics.items()
        if found.value is not None
    ]
    card = ModelCardData(
        library_name="se_detection",
        pipeline_tag="object-detection",
        tags=["detectron2", "squeeze-and-excitation"],
        license=license or None,
        model_name=label if results else None,
        eval_results=results or None,
    )
    title = f"# {cfg.MODEL.META_ARCHITECTURE} with {label}"
    about = {"parameters": f"{count_parameters(model) / 1e6:.1f} million", "classes": ", ".join(classes), **data}
    sections = {
        "": _table(about),
        "Use": f"{USE}\n\nIt needs `se_detection` {version('se_detection')} or newer.",
        "AP": _average_precision(metrics, comparison),
        "Input": _table(_input(cfg)),
        "Recipe": _table(_recipe(run)) if run else "The run is not known.",
        "License": license or "The author has not stated the license of these weights: ask before you use them.",
    }
    text = "\n\n".join(f"## {heading}\n\n{body}" if heading else body for heading, body in sections.items())
    return ModelCard(f"---\n{card.to_yaml()}\n---\n\n{title}\n\n{text}\n")


def _evaluated(weights: Path) -> EvaluatedRun | None:
    """The run that holds these weights, if they are what it has evaluated."""
    try:
        run = read_run(weights.parent)
    except UserError:
        return None
    return run if run.checkpoint is None or run.checkpoint.file == weights.name else None


def _data(run: EvaluatedRun | None) -> dict[str, str]:
    """The names of the annotation files, without their folders."""
    known = run.record.get("data", {}) if run else {}
    files = {name: Path(item.get("json") or name).name for name, item in known.items()}
    sets = (run.recipe or {}).get("DATASETS.TRAIN", ()) if run else ()
    trained = ", ".join(files.get(name, name) for name in sets)
    return {"trained on": trained or "not known", "evaluated on": run.annotations.name if run else "not known"}


def _metrics(run: EvaluatedRun) -> dict[str, Difference]:
    """COCO's metrics with 95 % intervals over images: the difference from a detector that finds nothing."""
    coco = load_annotations(run.annotations)
    weights = image_weights(len(coco.imgs), SAMPLES)
    scores = score_run(coco, load_results(run.detections, coco, run.name), weights, [], lambda: None)
    images = images_by_size(coco)
    values = {name: scores.metrics[name][None] for name in SHOWN}
    return {
        name: estimate(np.zeros_like(value), value, images[METRICS[name]]).difference()
        for name, value in values.items()
    }


def _average_precision(metrics: dict[str, Difference], comparison: Path | str | None) -> str:
    parts = []
    if metrics:
        rows = [[name, _number(found.value), _interval(found.low, found.high)] for name, found in metrics.items()]
        parts.append(tabulate(rows, ["", "", "95 % interval over images"], tablefmt="github", disable_numparse=True))
    if comparison is not None:
        parts.append(_compared(Path(comparison)))
    return "\n\n".join(parts) or "These weights were not evaluated."


def _number(value: float | None, sign: str = "") -> str:
    return "undefined" if value is None else f"{value:{sign}.1f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "none" if low is None else f"{_number(low, sign)} to {_number(high, sign)}"


def _compared(path: Path) -> str:
    """The table of a comparison, with the intervals of the differences, and its verdict."""
    content = read_json(path)
    try:
        names = [", ".join(Path(run).name for run in content["names"][role]) for role in ROLES]
        rows = []
        for key, name in HEADLINE.items():
            value, low, high = (content["difference"][key][part] for part in ("value", "low", "high"))
            change = f"{_number(value, '+')} ({_interval(low, high, '+')})"
            rows.append([name, *(_number(content[role][key]) for role in ROLES), change])
        verdict = str(content["verdict"])
    except (LookupError, TypeError, ValueError) as error:
        message = f"{path} is not a comparison of runs; give comparison.json of se-det compare"
        raise UserError("compare.not_comparison", message) from error
    headings = ["", *(f"{role}: {name}" for role, name in zip(ROLES, names, strict=True)), "difference (95 % interval)"]
    table = tabulate(rows, headings, tablefmt="github", disable_numparse=True)
    return f"{table}\n\nVerdict of `se-det compare`: {verdict}."


def _input(cfg: CfgNode) -> dict[str, str]:
    channels = cfg.INPUT.FORMAT
    return {
        "channels": f"{channels}, from 0 to 255 (`SEPredictor` converts files and PIL images)",
        "mean": f"{_numbers(cfg.MODEL.PIXEL_MEAN)} (in {channels}, subtracted)",
        "standard deviation": f"{_numbers(cfg.MODEL.PIXEL_STD)} (divided by)",
        "size": f"the shorter side is resized to {cfg.INPUT.MIN_SIZE_TEST} pixels, the longer to at most "
        f"{cfg.INPUT.MAX_SIZE_TEST}"
        if cfg.INPUT.MIN_SIZE_TEST
        else "not resized",
        "rotation": "by the EXIF orientation",
    }


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _recipe(run: EvaluatedRun) -> dict[str, str]:
    settings = {name: value for name, value in recipe_settings(run).items() if name not in NOT_SHOWN}
    # A path of the author's machine.
    weights = RECIPE["MODEL.WEIGHTS"]
    if "://" not in settings[weights]:
        settings[weights] = Path(settings[weights]).name
    return settings


def _table(rows: dict[str, str]) -> str:
    return tabulate([*rows.items()], ["", ""], tablefmt="github", disable_numparse=True)
