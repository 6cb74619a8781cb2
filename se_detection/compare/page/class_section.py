"""The classes of a comparison, from the largest gain to the largest loss."""

from ...visualization.page_blocks import Bars, Block, Cell, Name, Number, Table, Text
from ..comparison import ClassDifference, Comparison
from ..intervals import FALSE_DISCOVERY_RATE, MIN_IMAGES
from .interval_cells import HEADING, interval_cell, reach_of

# Of more, the largest differences are shown, those with an interval first, and the others are folded away.
SHOWN = 20


def class_blocks(comparison: Comparison) -> list[Block]:
    """A paragraph on what can be told, and a table with bars."""
    classes = comparison.per_class
    names = sorted(classes, key=lambda name: (_difference(classes[name]) is None, -(_difference(classes[name]) or 0)))
    by_size = sorted(names, key=lambda name: (classes[name].p_adjusted is None, -abs(_difference(classes[name]) or 0)))
    largest = set(by_size[:SHOWN])
    reach = reach_of(item.difference for item in classes.values())
    rows = {name: _row(name, classes[name], reach) for name in names}
    caption = "AP of each class. An interval is for its class alone."
    if len(names) > SHOWN:
        caption += f" The {SHOWN} largest differences of {len(names)} classes."
    headings = ["class", "AP: baseline, candidate", HEADING]
    shown = [row for name, row in rows.items() if name in largest]
    blocks: list[Block] = [Text(_told(comparison)), Table(caption, headings, shown)]
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
        interval_cell(item.difference, reach, told=item.told),
    ]


def _told(comparison: Comparison) -> str:
    told = [name for name, item in comparison.per_class.items() if item.told]
    tested = sum(item.p_adjusted is not None for item in comparison.per_class.values())
    if not tested:
        return f"No class is held by {MIN_IMAGES} images or more, so there is no interval for any."
    rate = f"at a false discovery rate of {100 * FALSE_DISCOVERY_RATE:.0f}\u00a0% (Benjamini and Hochberg)"
    classes = f"{'class' if tested == 1 else 'classes'} that {MIN_IMAGES} images or more hold"
    if not told:
        return f"No difference can be told in the {tested} {classes}, {rate}."
    return f"A difference can be told in {len(told)} of the {tested} {classes}, {rate}; in colour."
