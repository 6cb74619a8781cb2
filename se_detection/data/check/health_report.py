"""Formats the health of a data set as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ...errors import counted

# The maximum lengths of lists in the tables; the JSON has everything.
EXAMPLES = 3
CLASSES = 24
# Columns of the findings: level, count, what, examples, advice.
WIDTHS = [7, 6, 27, 39, 25]


def health_tables(health: dict[str, Any]) -> str:
    """Tables of findings, classes and box sizes, and a last line with the number of findings."""
    counts = (
        counted(health["images"], "image"),
        counted(health["annotations"], "annotation"),
        counted(len(health["classes"]), "class", "classes"),
    )
    head = f"{health['json_file']}: {', '.join(counts)}"
    parts = [head, _findings(health), _classes(health), _anchors(health["anchors"]), summary(health)]
    return "\n\n".join(part for part in parts if part)


def summary(health: dict[str, Any]) -> str:
    """One line: the number of findings of each level."""
    errors, warnings = health["errors"], health["warnings"]
    verdict = "not fit for training and evaluation" if errors else "fit for training and evaluation"
    notes = len(health["findings"]) - errors - warnings
    return f"{health['json_file']}: {verdict}; errors: {errors}, warnings: {warnings}, notes: {notes}"


def first_few(examples: Sequence[str], separator: str = "\n") -> str:
    """The first examples, and the number of the others."""
    more = [f"… and {len(examples) - EXAMPLES} more"] if len(examples) > EXAMPLES else []
    return separator.join([*examples[:EXAMPLES], *more])


def changes_text(changes: Mapping[str, Sequence[str]]) -> str:
    """One line for each kind of change: the number of entries, the change, and the first entries."""
    return "\n".join(f"{len(entries):7}  {what}: {first_few(entries, ', ')}" for what, entries in changes.items())


def _findings(health: dict[str, Any]) -> str:
    rows = [
        [each["level"], each["count"], each["what"], first_few(each["examples"]), each["advice"]]
        for each in health["findings"]
    ]
    headings = ["level", "count", "what", "where", "what to do"]
    # Names of files and keys stay whole, to be copied.
    whole = {"break_long_words": False, "break_on_hyphens": False}
    options: dict[str, Any] = {"tablefmt": "simple_grid", "disable_numparse": True, "maxcolwidths": WIDTHS, **whole}
    return tabulate(rows, headings, **options) if rows else ""


def _classes(health: dict[str, Any]) -> str:
    ordered = sorted(health["classes"], key=lambda row: -row["boxes"])
    total = sum(row["boxes"] for row in ordered) or 1
    rows = [[*list(row.values())[:3], f"{row['boxes'] / total:.1%}", row["images"], row["crowds"]] for row in ordered]
    if len(rows) > CLASSES:
        half = CLASSES // 2
        rows[half:-half] = [["…", f"({len(rows) - 2 * half} more)", "", "", "", ""]]
    headings = ["id", "class", "boxes", "share", "images", "crowds"]
    colalign = ["right", "left", *["right"] * 4]
    return tabulate(rows, headings, disable_numparse=True, colalign=colalign) if rows else ""


def _anchors(fit: dict[str, Any] | None) -> str:
    if fit is None:
        return ""
    rows = [
        [row["name"], row["boxes"], f"{row['side']:.0f}", f"{row['iou']:.2f}", f"{row['uncovered'] / row['boxes']:.1%}"]
        if row["boxes"]
        else [row["name"], 0, "–", "–", "–"]
        for row in fit["classes"]
    ]
    headings = ["boxes by size", "number", "median side (resized)", "median IoU, best anchor", "no anchor of IoU ≥ 0.5"]
    table = tabulate(rows, headings, disable_numparse=True, colalign=["left", *["right"] * 4])
    (low, high), (flat, tall), (shortest, longest) = fit["sides"], fit["ratios"], fit["test_size"]
    resized = f"images resized to {shortest} (at most {longest})" if shortest else "not resized"
    return (
        f"{table}\nAnchors: sides of {low:.0f} to {high:.0f} pixels, height / width {flat:.2g} to {tall:.2g}; "
        f"{resized}.\nA side is √(width × height); small, medium and large are COCO's, in the image as annotated."
    )
