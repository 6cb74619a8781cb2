"""The results of a case: a row for each model."""

from dataclasses import dataclass

import numpy as np

from .case import Case
from .ratio import Array, Ratio, paired_ratio
from .timed_models import MODEL_NAMES, PLAIN_OF, STOCK
from .times import Times


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a model in one case.

    Args:
        model: its name.
        case: the case.
        rounds: number of timings.
        ratio: its time over stock's.
        over_plain: its time over that of the plain network run in the same way, or None.
        spread: interquartile range of its times over their median: how noisy the machine was.
        cost: its median time over stock's in the first case of the same part, mode and precision.
        memory_ratio: its peak memory over stock's; None if unknown.
        median_ms: milliseconds; on a GPU only, otherwise None.
    """

    model: str
    case: Case
    rounds: int
    ratio: Ratio
    over_plain: Ratio | None
    spread: float
    cost: float
    memory_ratio: float | None
    median_ms: float | None


def rows_of(times: Times, first: float) -> list[Row]:
    """A row for each model that was timed.

    Args:
        times: see :func:`measure_case`.
        first: stock's median in the first case of the same part, mode and precision, in seconds.
    """
    stock, stock_memory = times.seconds[STOCK], times.memory[STOCK]
    rows = []
    for name in [name for name in MODEL_NAMES if name in times.seconds]:
        seconds = times.seconds[name]
        median = float(np.median(seconds))
        plain = times.seconds.get(PLAIN_OF.get(name, ""))
        memory = times.memory.get(name)
        rows.append(
            Row(
                model=name,
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
