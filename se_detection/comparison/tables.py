"""Prints a comparison as tables, and writes them to files."""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from ..errors import UserError, counted
from ..files import check_folder, read_json
from .comparison_plots import draw_plots
from .details import Curve
from .error_types import ERRORS
from .intervals import MIN_IMAGES, Difference
from .result import Comparison

FILES = ("comparison.json", "comparison.md", "plots", "pictures")
# Heading, unit and decimals: first the metrics of the paper's Table 7, then COCO's others.
COLUMNS = {
    "AP50": ("AP@0.5", 1.0, 2),
    "AP": ("AP", 1.0, 2),
    "AP75": ("AP75", 1.0, 2),
    "APs": ("APs", 1.0, 2),
    "APm": ("APm", 1.0, 2),
    "APl": ("APl", 1.0, 2),
    "parameters": ("params (M)", 1e6, 2),
    "gflops": ("GFLOPs", 1.0, 2),
}
RECALLS = {name: (name, 1.0, 2) for name in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")}
# The number of classes that are named in a line.
CLASSES = 10
COMPARED = ("baseline", "candidate", "difference", "95 % interval")


def comparison_table(comparison: Comparison, tablefmt: str = "simple") -> str:
    """A row for each model, the differences and their 95 % intervals, followed by the verdict and the notes.

    Args:
        tablefmt: tabulate's format, such as `simple` for the screen or `github` for Markdown.
    """
    parts = [_metrics(comparison, COLUMNS, tablefmt)]
    if comparison.backbone_sizes:
        parts.append(f"GFLOPs: 10⁹ multiply-adds of the backbone at {comparison.backbone_sizes}.")
    if any(any(own) for own in comparison.checkpoints.values()):
        evaluated = [
            f"{role} {', '.join(dict.fromkeys(str(item or 'not recorded') for item in own))}"
            for role, own in comparison.checkpoints.items()
        ]
        parts.append(f"Evaluated: {'; '.join(evaluated)}.")
    if comparison.covers == "images and training runs":
        runs = " and ".join(str(len(spreads["AP"].values)) for spreads in comparison.runs.values())
        few = " With so few runs the intervals are wide; more runs would narrow them." * comparison.has_few_runs
        parts.append(
            "± is the standard deviation over runs. The intervals cover the choice of images and repeated training, "
            f"estimated from {runs} runs; both models are assumed to vary equally between runs.{few}"
        )
    notes = [f"Note: {note}." for note in comparison.notes]
    return "\n\n".join([*parts, f"Verdict: {comparison.verdict}.", *notes, _significant_classes(comparison)])


def comparison_markdown(comparison: Comparison, plots: Sequence[Path] = ()) -> str:
    """The content of `comparison.md`.

    Args:
        plots: images to show, relative to the file.
    """
    details = comparison.details
    baseline, candidate = details.error_types.values()
    parts = [comparison_table(comparison, "github")]
    recipe = [(key, *values, kind) for kind, keys in comparison.recipe.items() for key, values in keys.items()]
    if recipe:
        parts += ["## Differences between the configs", _table(recipe, ["key", "baseline", "candidate", "of"], texts=4)]
    parts += ["## Average recall", _metrics(comparison, RECALLS, "github")]
    each_run = [
        (name, *(_number(item.values[place]) for item in spreads.values()))
        for role, spreads in comparison.runs.items()
        if (count := len(spreads["AP"].values)) > 1
        for place, name in enumerate(comparison.names.get(role) or [f"{role} {n}" for n in range(1, count + 1)])
    ]
    if each_run:
        parts += ["## Each run", _table(each_run, ["", *comparison.runs["baseline"]])]
    errors = [
        (
            name.replace("_", " "),
            *(_number(types[name].dap) for types in (baseline, candidate)),
            _number(candidate[name].dap - baseline[name].dap, sign="+"),
            *(f"{types[name].count:.0f}" for types in (baseline, candidate)),
        )
        for name in [*ERRORS, *(name for name in baseline if name not in ERRORS)]
    ]
    classes = [
        (name, item.images, *_compared(item.baseline, item.candidate, item.difference), _number(item.p_adjusted, 1, 3))
        for name, item in comparison.per_class.items()
    ]
    parts += [
        "## Errors",
        "The gain in AP@0.5 if one type of error were fixed (TIDE, Bolya et al. 2020), and the number of errors.",
        _table(errors, ["", *COMPARED[:3], "number, baseline", "number, candidate"]),
        "## By IoU threshold",
        _curve_table(details.ap_by_iou, "IoU", "{:.2f}"),
        "## By object size",
        "By the square root of the area, in pixels; each range holds the same number of objects.",
        _curve_table(details.ap_by_size, "up to", "{:.0f}"),
        "## By class",
        "Each interval is for one class alone. p is adjusted for the number of classes (Benjamini and Hochberg).",
        _table(classes, ["class", "images", *COMPARED, "p, adjusted"]),
    ]
    if plots:
        parts += ["## Plots", *(f"![{path.stem.replace('_', ' ')}]({path.as_posix()})" for path in plots)]
    return "\n\n".join(parts) + "\n"


def report_folder(
    runs: Sequence[Path], output: Path | None, *, overwrite: bool, command: dict[str, str] | None = None
) -> Path:
    """The folder for a report: `output`, or else the folder that contains all runs, or else that of the last run.

    Args:
        runs: folders or files, with the candidate's last.
        command: from :func:`this_command`; an earlier report of the same command may be replaced.

    Raises:
        UserError: the folder has another report and `overwrite` is not set, or `output` is a file.
    """
    parents = {path.resolve().parent for path in runs}
    own = runs[-1].parent if runs[-1].is_file() else runs[-1]
    folder = output or (parents.pop() if len(parents) == 1 else own)
    check_folder(folder)
    overwrite = overwrite or is_report_of(command, folder)
    for name in FILES:
        if (folder / name).exists() and not overwrite:
            where = f"{folder / name} already exists"
            raise UserError("output.exists", f"{where}; choose another --output, or replace it with --overwrite")
    return folder


def this_command() -> dict[str, str]:
    """The running command line without `--overwrite`, and its working directory."""
    return {"line": shlex.join(word for word in sys.argv if word != "--overwrite"), "directory": os.getcwd()}


def is_report_of(command: dict[str, str] | None, folder: Path) -> bool:
    """Whether the report in a folder was written by this command."""
    try:
        content = read_json(folder / FILES[0])
    except UserError:
        return False
    return command is not None and isinstance(content, dict) and content.get("command") == command


def write_report(comparison: Comparison, folder: Path, command: dict[str, str] | None = None) -> list[Path]:
    """Writes `comparison.json`, `comparison.md` and `plots/`, replacing existing files, and returns their paths.

    Args:
        command: from :func:`this_command`, to be recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(comparison, folder / "plots")
    recorded = comparison.to_dict() | ({"command": command} if command else {})
    content = json.dumps(recorded, indent=2, allow_nan=False) + "\n"
    markdown = comparison_markdown(comparison, [path.relative_to(folder) for path in plots])
    files = {folder / FILES[0]: content, folder / FILES[1]: markdown}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return [*files, *plots]


def _metrics(comparison: Comparison, all_columns: dict[str, tuple[str, float, int]], tablefmt: str) -> str:
    values = {"baseline": comparison.baseline, "candidate": comparison.candidate}
    shown = {*comparison.runs["baseline"], *(key for own in values.values() for key in own if own[key] is not None)}
    columns = {key: column for key, column in all_columns.items() if key in shown}
    rows = []
    for role, model in comparison.models.items():
        cells = (_number(values[role][key], unit, places) for key, (_, unit, places) in columns.items())
        rows.append((model.name, model.backbone, *cells))
        spreads = comparison.runs[role]
        if (count := len(spreads["AP"].values)) > 1:
            stds = (_number(spreads[key].std if key in spreads else None) for key in columns)
            rows.append((f"± over {counted(count, 'run')}", "", *stds))
    differences = [(comparison.difference[key], unit, places) for key, (_, unit, places) in columns.items()]
    rows += [
        ("difference", "", *(_number(item.value, unit, places, "+") for item, unit, places in differences)),
        ("95 % interval", "", *(_interval(item, places) for item, _, places in differences)),
    ]
    return _table(rows, ["", "backbone", *(heading for heading, _, _ in columns.values())], tablefmt, texts=2)


def _table(
    rows: Sequence[Iterable[object]], headings: Sequence[str], tablefmt: str = "github", *, texts: int = 1
) -> str:
    """A table whose first `texts` columns are left-aligned and whose numbers are right-aligned."""
    align = ["left"] * texts + ["right"] * (len(headings) - texts)
    return tabulate(rows, headings, tablefmt=tablefmt, disable_numparse=True, colalign=align if rows else None)


def _curve_table(curve: Curve, heading: str, form: str) -> str:
    rows = [(x, *_compared(first, second, item)) for x, first, second, item in curve.rows(form)]
    return _table(rows, [heading, *COMPARED])


def _compared(baseline: float | None, candidate: float | None, difference: Difference) -> list[str]:
    return [_number(baseline), _number(candidate), _number(difference.value, sign="+"), _interval(difference)]


def _number(value: float | None, unit: float = 1, places: int = 2, sign: str = "") -> str:
    return "–" if value is None else f"{value / unit:{sign}.{places}f}"


def _interval(item: Difference, places: int = 2) -> str:
    return "–" if item.low is None else f"{item.low:.{places}f} to {item.high:.{places}f}"


def _significant_classes(comparison: Comparison) -> str:
    differing = [
        f"{name} {_number(item.difference.value, sign='+', places=1)} ({_interval(item.difference, places=1)})"
        for name, item in sorted(comparison.per_class.items(), key=lambda pair: -abs(pair[1].difference.value or 0))
        if item.significant
    ]
    tested = sum(item.p_adjusted is not None for item in comparison.per_class.values())
    what = f"{tested} in {MIN_IMAGES} images or more; false discovery rate 5 %, Benjamini and Hochberg"
    more = [f"and {len(differing) - CLASSES} more"] if len(differing) > CLASSES else []
    named = ", ".join([*differing[:CLASSES], *more])
    verdict = f"significant differences in {len(differing)}: {named}" if differing else "no significant difference"
    return f"Classes ({what}): {verdict}."
