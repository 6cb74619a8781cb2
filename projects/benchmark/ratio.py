"""A ratio of times that were measured in turn, with its confidence interval."""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median over rounds, with its 95 % interval; `low` and `high` are None with fewer than 6 rounds."""

    value: float
    low: float | None
    high: float | None

    def cells(self) -> list[str]:
        """The ratio and its interval, for a table."""
        return [f"{self.value:.3f}", "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"]


def paired_ratio(seconds: Array, baseline: Array) -> Ratio:
    """The median of the rounds' ratios. A slowdown of a whole round cancels out.

    The interval is that of the sign test, which holds for any distribution of the times: the values of rank k + 1 and
    n - k of n rounds, with the largest k for which P(Bin(n, 1/2) <= k) is at most 2.5 %. It needs six rounds.

    Args:
        seconds: (rounds,)
        baseline: (rounds,), measured in the same rounds.
    """
    ratios = np.sort(seconds / baseline)
    rounds = len(ratios)
    outside = 0
    tail = 0.5**rounds
    while 2 * tail <= 1 - CONFIDENCE:
        outside += 1
        tail += comb(rounds, outside) * 0.5**rounds
    median = float(np.median(ratios))
    if outside == 0:
        return Ratio(median, None, None)
    return Ratio(median, float(ratios[outside - 1]), float(ratios[rounds - outside]))
