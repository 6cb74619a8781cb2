"""Prints a comparison as tables, and writes them to files."""

import json
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..errors import UserError
from ..files import check_folder
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


def comparison_table(comparison: Comparison, tablefmt: str = "simple") -> str:
    """A row for each model, the differences and their 95 % intervals, followed by the verdict and the notes.

    Args:
        tablefmt: tabulate's format, such as `simple` for the screen or `github` for Markdown.
    """
    parts = [
        _table(comparison, COLUMNS, tablefmt),
        *_gflops_note(comparison),
        *_runs_note(comparison),
        f"Verdict: {comparison.verdict}.",
        *(f"Note: {note}." for note in comparison.notes),
        _significant_classes(comparison),
    ]
    return "\n\n".join(parts)


def comparison_markdown(comparison: Comparison, plots: Sequence[Path] = ()) -> str:
    """The content of `comparison.md`.

    Args:
        plots: images to show, relative to the file.
    """
    parts = [
        comparison_table(comparison, "github"),
        *_recipe_table(comparison),
        "## Average recall",
        _table(comparison, RECALLS, "github"),
        *_each_run(comparison),
        "## Errors",
        "The gain in AP@0.5 if one type of error were fixed (TIDE, Bolya et al. 2020), and the number of errors.",
        _error_table(comparison),
        "## By IoU threshold",
        _curve_table(comparison.details.ap_by_iou, "IoU", "{:.2f}"),
        "## By object size",
        "By the square root of the area, in pixels; each range holds the same number of objects.",
        _curve_table(comparison.details.ap_by_size, "up to", "{:.0f}"),
        "## By class",
        "Each interval is for one class alone. p is adjusted for the number of classes (Benjamini and Hochberg).",
        _class_table(comparison),
    ]
    if plots:
        parts += ["## Plots", *(f"![{path.stem.replace('_', ' ')}]({path.as_posix()})" for path in plots)]
    return "\n\n".join(parts) + "\n"


def report_folder(runs: Sequence[Path], output: Path | None, *, overwrite: bool) -> Path:
    """The folder for a report: `output`, or else the folder that contains all runs, or else that of the last run.

    Args:
        runs: folders or files, with the candidate's last.

    Raises:
        UserError: the folder has a report and `overwrite` is not set, or `output` is a file.
    """
    parents = {path.resolve().parent for path in runs}
    own = runs[-1].parent if runs[-1].is_file() else runs[-1]
    folder = output or (parents.pop() if len(parents) == 1 else own)
    check_folder(folder)
    for name in FILES:
        if (folder / name).exists() and not overwrite:
            raise UserError(f"{folder / name} already exists; choose another --output, or replace it with --overwrite")
    return folder


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes `comparison.json`, `comparison.md` and `plots/`, replacing existing files, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(comparison, folder / "plots")
    content = json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n"
    markdown = comparison_markdown(comparison, [path.relative_to(folder) for path in plots])
    files = {folder / FILES[0]: content, folder / FILES[1]: markdown}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return [*files, *plots]


def _table(comparison: Comparison, all_columns: dict[str, tuple[str, float, int]], tablefmt: str) -> str:
    known = {
        key for metrics in (comparison.baseline, comparison.candidate) for key in metrics if metrics[key] is not None
    }
    columns = {key: column for key, column in all_columns.items() if key in comparison.runs["baseline"] or key in known}
    rows = []
    for (role, model), metrics in zip(
        comparison.models.items(), (comparison.baseline, comparison.candidate), strict=True
    ):
        cells = (_number(metrics[key], unit, places) for key, (_, unit, places) in columns.items())
        rows.append([model.name, model.backbone, *cells])
        spreads = comparison.runs[role]
        if len(spreads["AP"].values) > 1:
            stds = [spreads[key].std if key in spreads else None for key in columns]
            rows.append([f"± over {len(spreads['AP'].values)} runs", "", *(_number(std, 1, 2) for std in stds)])
    differences = [(comparison.difference[key], unit, places) for key, (_, unit, places) in columns.items()]
    rows += [
        ["difference", "", *(_number(item.value, unit, places, "+") for item, unit, places in differences)],
        ["95 % interval", "", *(_interval(*difference) for difference in differences)],
    ]
    return _tabulate(rows, ["", "backbone", *(heading for heading, _, _ in columns.values())], tablefmt, texts=2)


def _tabulate(rows: list[list[str]], headings: list[str], tablefmt: str = "github", texts: int = 1) -> str:
    """A table whose first `texts` columns are left-aligned and whose numbers are right-aligned."""
    align = ["left"] * texts + ["right"] * (len(headings) - texts)
    return tabulate(rows, headings, tablefmt=tablefmt, disable_numparse=True, colalign=align if rows else None)


def _number(value: float | None, unit: float = 1, places: int = 2, sign: str = "") -> str:
    return "–" if value is None else f"{value / unit:{sign}.{places}f}"


def _interval(difference: Difference, unit: float = 1, places: int = 2) -> str:
    if difference.low is None:
        return "–"
    return f"{_number(difference.low, unit, places)} to {_number(difference.high, unit, places)}"


def _gflops_note(comparison: Comparison) -> list[str]:
    sizes = comparison.backbone_sizes
    return [f"GFLOPs: 10⁹ multiply-adds of the backbone at {sizes}."] if sizes else []


def _runs_note(comparison: Comparison) -> list[str]:
    if comparison.covers != "images and training runs":
        return []
    runs = [len(spreads["AP"].values) for spreads in comparison.runs.values()]
    few = " With so few runs the intervals are wide; more runs would narrow them." if comparison.has_few_runs else ""
    return [
        f"± is the standard deviation over runs. The intervals cover the choice of images and repeated training, "
        f"estimated from {runs[0]} and {runs[1]} runs; both models are assumed to vary equally between runs.{few}"
    ]


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


def _recipe_table(comparison: Comparison) -> list[str]:
    rows = [[key, *map(str, values), kind] for kind, keys in comparison.recipe.items() for key, values in keys.items()]
    if not rows:
        return []
    return ["## Differences between the configs", _tabulate(rows, ["key", "baseline", "candidate", "of"], texts=4)]


def _each_run(comparison: Comparison) -> list[str]:
    rows = []
    for role, spreads in comparison.runs.items():
        count = len(spreads["AP"].values)
        names = comparison.names.get(role) or [f"{role} {number}" for number in range(1, count + 1)]
        if count > 1:
            rows += [
                [name, *(_number(item.values[place]) for item in spreads.values())] for place, name in enumerate(names)
            ]
    return ["## Each run", _tabulate(rows, ["", *comparison.runs["baseline"]])] if rows else []


def _error_table(comparison: Comparison) -> str:
    first, second = comparison.details.error_types.values()
    rows = []
    for name in [*ERRORS, *(name for name in first if name not in ERRORS)]:
        gains = [first[name].dap, second[name].dap]
        cells = [_number(value) for value in gains] + [_number(gains[1] - gains[0], sign="+")]
        rows.append([name.replace("_", " "), *cells, *(f"{types[name].count:.0f}" for types in (first, second))])
    return _tabulate(rows, ["", "baseline", "candidate", "difference", "number, baseline", "number, candidate"])


def _curve_table(curve: Curve, heading: str, form: str) -> str:
    rows = [
        [x, _number(first), _number(second), _number(item.value, sign="+"), _interval(item)]
        for x, first, second, item in curve.rows(form)
    ]
    return _tabulate(rows, [heading, "baseline", "candidate", "difference", "95 % interval"])


def _class_table(comparison: Comparison) -> str:
    rows = [
        [
            name,
            str(item.images),
            *(_number(value) for value in (item.baseline, item.candidate)),
            _number(item.difference.value, sign="+"),
            _interval(item.difference),
            _number(item.p_adjusted, places=3),
        ]
        for name, item in comparison.per_class.items()
    ]
    return _tabulate(rows, ["class", "images", "baseline", "candidate", "difference", "95 % interval", "p, adjusted"])
