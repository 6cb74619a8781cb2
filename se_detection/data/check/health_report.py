"""Formats the health of a data set as tables and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from .health import Health

# The maximum lengths of lists in the tables; the JSON has everything.
EXAMPLES = 3
CLASSES = 24
# Columns of the findings: level, count, what, examples, advice.
WIDTHS = [7, 6, 27, 39, 25]


def health_tables(health: Health) -> str:
    """Tables of findings, classes and box sizes, and a last line with the number of findings."""
    counts = f"{health.images} images, {health.annotations} annotations, {len(health.classes)} classes"
    head = f"{health.json_file}: {counts}"
    parts = [head, _findings(health), _classes(health), _anchors(health), summary(health)]
    return "\n\n".join(part for part in parts if part)


def summary(health: Health) -> str:
    """One line: the number of findings of each level."""
    errors, warnings, notes = (health.count(level) for level in ("error", "warning", "note"))
    verdict = "not fit for training and evaluation" if errors else "fit for training and evaluation"
    return f"{health.json_file}: {verdict}; errors: {errors}, warnings: {warnings}, notes: {notes}"


def health_dict(health: Health) -> dict[str, Any]:
    """The health as a dict for JSON, with all examples and all classes."""
    return asdict(health) | {"errors": health.count("error"), "warnings": health.count("warning")}


def first_few(examples: Sequence[str], separator: str = "\n") -> str:
    """The first examples, and the number of the others."""
    more = [f"… and {len(examples) - EXAMPLES} more"] if len(examples) > EXAMPLES else []
    return separator.join([*examples[:EXAMPLES], *more])


def _findings(health: Health) -> str:
    rows = [
        [finding.level, finding.count, finding.what, first_few(finding.examples), finding.advice]
        for finding in health.findings
    ]
    headings = ["level", "count", "what", "where", "what to do"]
    return tabulate(rows, headings, tablefmt="simple_grid", disable_numparse=True, maxcolwidths=WIDTHS) if rows else ""


def _classes(health: Health) -> str:
    ordered = sorted(health.classes, key=lambda count: -count.boxes)
    total = sum(count.boxes for count in ordered) or 1
    rows = [[row.id, row.name, row.boxes, f"{row.boxes / total:.1%}", row.images, row.crowds] for row in ordered]
    if len(rows) > CLASSES:
        half = CLASSES // 2
        rows[half:-half] = [["…", f"({len(rows) - 2 * half} more)", "", "", "", ""]]
    headings = ["id", "class", "boxes", "share", "images", "crowds"]
    colalign = ["right", "left", "right", "right", "right", "right"]
    return tabulate(rows, headings, disable_numparse=True, colalign=colalign) if rows else ""


def _anchors(health: Health) -> str:
    fit = health.anchors
    if fit is None:
        return ""
    rows = [
        [
            size.name,
            size.boxes,
            "–" if size.side is None else f"{size.side:.0f}",
            "–" if size.iou is None else f"{size.iou:.2f}",
            f"{size.uncovered / size.boxes:.1%}" if size.boxes else "–",
        ]
        for size in fit.classes
    ]
    headings = ["boxes by size", "number", "median side (resized)", "median IoU, best anchor", "no anchor of IoU ≥ 0.5"]
    table = tabulate(rows, headings, disable_numparse=True, colalign=["left", *["right"] * 4])
    shortest, longest = fit.test_size
    resized = f"images resized to {shortest} (at most {longest})" if shortest else "not resized"
    about = (
        f"Anchors: sides of {fit.sides[0]:.0f} to {fit.sides[1]:.0f} pixels, height / width {fit.ratios[0]:.2g} to "
        f"{fit.ratios[1]:.2g}; {resized}.\nA side is √(width × height); small, medium and large are "
        "COCO's, in the image as annotated."
    )
    return f"{table}\n{about}"


def changes_text(changes: Mapping[str, Sequence[str]]) -> str:
    """One line for each kind of change: the number of entries, the change, and the first entries."""
    return "\n".join(f"{len(entries):7}  {what}: {first_few(entries, ', ')}" for what, entries in changes.items())
