"""The classes of a comparison, from the largest gain to the largest loss."""

from ...visualization.page_blocks import Bars, Block, Cell, Name, Number, Table, Text
from ..intervals import FALSE_DISCOVERY_RATE, MIN_IMAGES
from ..result import ClassDifference, Comparison
from .score_section import INTERVAL_HEADING, common_reach, interval_cell

# With more classes, those with intervals and large differences are shown, and the others are folded.
SHOWN = 20


def class_blocks(comparison: Comparison) -> list[Block]:
    """A paragraph on the significant differences, and a table with bars."""
    classes = comparison.per_class
    names = sorted(classes, key=lambda name: (_difference(classes[name]) is None, -(_difference(classes[name]) or 0)))
    by_size = sorted(names, key=lambda name: (classes[name].p_adjusted is None, -abs(_difference(classes[name]) or 0)))
    largest = set(by_size[:SHOWN])
    reach = common_reach(item.difference for item in classes.values())
    rows = {name: _row(name, classes[name], reach) for name in names}
    caption = "AP of each class. Each interval is for one class alone."
    if len(names) > SHOWN:
        caption += f" The {SHOWN} largest differences of {len(names)} classes."
    headings = ["class", "AP: baseline, candidate", INTERVAL_HEADING]
    shown = [row for name, row in rows.items() if name in largest]
    blocks: list[Block] = [Text(_significance(comparison)), Table(caption, headings, shown)]
    others = [row for name, row in rows.items() if name not in largest]
    if others:
        summary = f"The other {len(others)} classes" if len(others) > 1 else "The other class"
        blocks.append(Table(f"{summary}.", headings, others, summary=summary))
    return blocks


def _difference(item: ClassDifference) -> float | None:
    return item.difference.value


def _row(name: str, item: ClassDifference, reach: float) -> list[Cell]:
    return [
        Name(name, f"in {item.images} {'image' if item.images == 1 else 'images'}"),
        Bars(Number(item.baseline), Number(item.candidate)),
        interval_cell(item.difference, reach, significant=item.significant),
    ]


def _significance(comparison: Comparison) -> str:
    differing = sum(item.significant for item in comparison.per_class.values())
    tested = sum(item.p_adjusted is not None for item in comparison.per_class.values())
    if not tested:
        return f"No class is in {MIN_IMAGES} images or more, so there are no intervals."
    rate = f"at a false discovery rate of {100 * FALSE_DISCOVERY_RATE:.0f}\u00a0% (Benjamini and Hochberg)"
    classes = f"{'class' if tested == 1 else 'classes'} in {MIN_IMAGES} images or more"
    if not differing:
        return f"No significant difference in the {tested} {classes}, {rate}."
    return f"Significant differences in {differing} of the {tested} {classes}, {rate}; shown in colour."
