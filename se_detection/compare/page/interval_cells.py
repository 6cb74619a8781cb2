"""Differences with their intervals, as cells of a table on one scale."""

from collections.abc import Iterable

from ...visualization.page_blocks import Interval
from ..intervals import Difference

HEADING = "difference, 95\u00a0% interval"


def reach_of(differences: Iterable[Difference]) -> float:
    """The scale that shows all of them."""
    ends = (end for item in differences for end in (item.value, item.low, item.high))
    return max((abs(end) for end in ends if end is not None), default=0.0)


def interval_cell(item: Difference, reach: float, *, told: bool = False) -> Interval:
    """A difference on the scale of :func:`reach_of`."""
    return Interval(item.value, item.low, item.high, reach, told)
