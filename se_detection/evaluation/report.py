"""A comparison as a table, on the screen and in files."""

import json
from pathlib import Path

from tabulate import tabulate

from ..errors import UserError
from .compare import Comparison, Difference

FILES = ("comparison.json", "comparison.md", "pictures")
# In the order of the paper's Table 7, the rest of COCO's after them: heading, unit, decimals.
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


def comparison_table(comparison: Comparison, tablefmt: str = "simple") -> str:
    """A row for each arm, the differences and their 95 % intervals; then what GFLOPs are, and the verdict.

    Args:
        tablefmt: one of tabulate's, such as `simple` for the screen and `github` for Markdown.
    """
    columns = {key: column for key, column in COLUMNS.items() if key in comparison.difference}
    rows = [
        [arm.name, arm.backbone, *(_number(metrics[key], unit, places) for key, (_, unit, places) in columns.items())]
        for arm, metrics in zip(comparison.arms, (comparison.baseline, comparison.candidate), strict=True)
    ]
    differences = [(comparison.difference[key], unit, places) for key, (_, unit, places) in columns.items()]
    rows += [
        ["difference", "", *(_number(item.value, unit, places, "+") for item, unit, places in differences)],
        ["95 % interval", "", *(_interval(*difference) for difference in differences)],
    ]
    headings = ["", "backbone", *(heading for heading, _, _ in columns.values())]
    table = tabulate(
        rows,
        headings,
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=["left", "left", *["right"] * len(columns)],
    )
    return "\n\n".join([table, *_gflops_note(comparison), f"Verdict: {comparison.verdict}."])


def comparison_markdown(comparison: Comparison) -> str:
    """The content of `comparison.md`."""
    return comparison_table(comparison, "github") + "\n"


def report_folder(baseline: Path, candidate: Path, output: Path | None, *, overwrite: bool) -> Path:
    """Where a report goes: `output`, or else the folder that holds both runs, or else the candidate's.

    Raises:
        UserError: a report is there already and is not to be replaced, or `output` is a file.
    """
    parents = baseline.resolve().parent, candidate.resolve().parent
    folder = output or (parents[1] if parents[0] == parents[1] else candidate)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--output {folder}: {existing} is a file; name a folder")
    for name in FILES:
        if (folder / name).exists() and not overwrite:
            raise UserError(
                f"{folder / name} is there already; choose another --output, or replace it with --overwrite"
            )
    return folder


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes `comparison.json` and `comparison.md`, replacing older ones, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n"
    files = {folder / FILES[0]: content, folder / FILES[1]: comparison_markdown(comparison)}
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def _number(value: float | None, unit: float, places: int, sign: str = "") -> str:
    return "–" if value is None else f"{value / unit:{sign}.{places}f}"


def _interval(difference: Difference, unit: float, places: int) -> str:
    if difference.low is None:
        return "–"
    return f"{_number(difference.low, unit, places)} to {_number(difference.high, unit, places)}"


def _gflops_note(comparison: Comparison) -> list[str]:
    sizes = sorted({arm.backbone_input for arm in comparison.arms if arm.backbone_input})
    if not sizes:
        return []
    return ["GFLOPs: 10⁹ multiply-adds of the backbone at " + " and ".join(f"{h}×{w}" for h, w in sizes) + "."]
