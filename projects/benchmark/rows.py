"""What the times of a case say about each arm."""

from dataclasses import dataclass

import numpy as np

from .arms import ARM_NAMES, PLAIN_OF, STOCK
from .case import Case
from .ratio import Array, Ratio, paired_ratio
from .times import Times


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm in one case.

    Args:
        arm: its name.
        case: the case.
        rounds: how often it was timed.
        ratio: its time over stock's.
        over_plain: its time over that of the plain network run alike; None where there is none.
        spread: the interquartile range of its times, as a part of their median: how restless the machine was.
        cost: its median over stock's in the first case of the same part, mode and precision: how time grows.
        memory_ratio: its peak memory over stock's; None where it can't be known.
        median_ms: milliseconds; None but on a GPU.
    """

    arm: str
    case: Case
    rounds: int
    ratio: Ratio
    over_plain: Ratio | None
    spread: float
    cost: float
    memory_ratio: float | None
    median_ms: float | None


def rows_of(times: Times, first: float) -> list[Row]:
    """A row for each arm that was timed.

    Args:
        times: of :func:`measure_case`.
        first: stock's median in the first case of the same part, mode and precision, in seconds.
    """
    stock, stock_memory = times.seconds[STOCK], times.memory[STOCK]
    rows = []
    for name in [name for name in ARM_NAMES if name in times.seconds]:
        seconds = times.seconds[name]
        median = float(np.median(seconds))
        plain = times.seconds.get(PLAIN_OF.get(name, ""))
        memory = times.memory.get(name)
        rows.append(
            Row(
                arm=name,
                case=times.case,
                rounds=len(seconds),
                ratio=paired_ratio(seconds, stock),
                over_plain=None if plain is None else paired_ratio(seconds, plain),
                spread=_spread(seconds),
                cost=median / first,
                memory_ratio=memory / stock_memory if memory and stock_memory else None,
                median_ms=1000 * median if times.case.device == "cuda" else None,
            )
        )
    return rows


def _spread(seconds: Array) -> float:
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / median)
