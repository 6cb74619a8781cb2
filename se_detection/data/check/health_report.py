"""Formats the health of a data set as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from .fix import Change
from .health import Finding, Health

# The maximum lengths of lists in the tables; the JSON has everything.
EXAMPLES = 3
CLASSES = 24
# Columns of the findings: level, count, what, examples, advice.
WIDTHS = [7, 6, 27, 39, 25]


def health_tables(health: Health) -> str:
    """Tables of findings, classes and box sizes, and a last line with the number of findings."""
    head = (
        f"{health.json_file}: {health.images} images, {health.annotations} annotations, {len(health.classes)} classes"
    )
    parts = [head, _findings(health), _classes(health), _anchors(health), summary(health)]
    return "\n\n".join(part for part in parts if part)


def summary(health: Health) -> str:
    """One line: the number of findings of each level."""
    errors, warnings, notes = (health.count(level) for level in ("error", "warning", "note"))
    verdict = "not fit for training and evaluation" if errors else "fit for training and evaluation"
    return f"{health.json_file}: {verdict}; errors: {errors}, warnings: {warnings}, notes: {notes}"


def health_dict(health: Health) -> dict[str, Any]:
    """The health as a dict for JSON, with all examples and all classes."""
    content = asdict(health)
    content["errors"], content["warnings"] = health.count("error"), health.count("warning")
    return content


def first_few(examples: Sequence[str], separator: str = "\n") -> str:
    """The first examples, and the number of the others."""
    more = [f"… and {len(examples) - EXAMPLES} more"] if len(examples) > EXAMPLES else []
    return separator.join([*examples[:EXAMPLES], *more])


def _findings(health: Health) -> str:
    rows = [_row(finding) for finding in health.findings]
    headings = ["level", "count", "what", "where", "what to do"]
    return tabulate(rows, headings, tablefmt="simple_grid", disable_numparse=True, maxcolwidths=WIDTHS) if rows else ""


def _row(finding: Finding) -> list[str]:
    return [finding.level, str(finding.count), finding.what, first_few(finding.examples), finding.advice]


def _classes(health: Health) -> str:
    ordered = sorted(health.classes, key=lambda count: -count.boxes)
    total = sum(count.boxes for count in ordered) or 1
    rows = [
        [count.id, count.name, count.boxes, f"{count.boxes / total:.1%}", count.images, count.crowds]
        for count in ordered
    ]
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
    resized = (
        f"images resized to {fit.test_size[0]} (at most {fit.test_size[1]})" if fit.test_size[0] else "not resized"
    )
    about = (
        f"Anchors: sides of {fit.sides[0]:.0f} to {fit.sides[1]:.0f} pixels, height / width {fit.ratios[0]:.2g} to "
        f"{fit.ratios[1]:.2g}; {resized}.\nA side is √(width × height); small, medium and large are "
        "COCO's, in the image as annotated."
    )
    return f"{table}\n{about}"


def changes_text(changes: Sequence[Change]) -> str:
    """One line for each kind of change: the number of entries, the change, and the first entries."""
    return "\n".join(f"{len(entries):7}  {what}: {first_few(entries, ', ')}" for what, entries in changes)
