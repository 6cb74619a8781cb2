"""What was exported, as a table."""

from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

HEADERS = ("detector", "format", "precision", "MB", "detections", "unpaired", "boxes (px)", "scores", "others", "AP")


def export_table(rows: Iterable[dict[str, Any]], *, tablefmt: str = "simple") -> str:
    """A line for each of `Export.to_dict`: the worst differences, and what AP it costs where that was measured."""
    return tabulate(map(_line, rows), HEADERS, tablefmt=tablefmt, disable_numparse=True)


def _line(row: dict[str, Any]) -> list[str]:
    worst = dict(row["worst"])
    how = " scripted" if row["scripting"] else " traced" if row["format"] == "torchscript" else ""
    whole = row["format"] != "torch-export"
    first = [row["detector"], row["format"] + how, row["precision"] + ", fused" * row["fuse"], str(row["megabytes"])]
    counts = [str(row["detections"]), str(row["unpaired"])] if whole else ["", ""]
    values = [f"{worst.pop(name):.1e}" if name in worst else "" for name in ("boxes", "scores")]
    others = f"maps {max(worst.values()):.1e}" if not whole else ", ".join(f"{k} {v:.1e}" for k, v in worst.items())
    return [*first, *counts, *values, others, _ap(row["ap"])]


def _ap(ap: dict[str, Any] | None) -> str:
    if ap is None:
        return ""
    difference = ap["difference"]
    interval = f" ({difference['low']:+.2f} to {difference['high']:+.2f})" if difference.get("low") is not None else ""
    return f"{ap['original']:.2f} to {ap['exported']:.2f}, {difference['value']:+.2f}{interval}"
