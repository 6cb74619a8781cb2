"""A ratio of times that were measured in turn, and how sure it is."""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median over rounds, with its 95 % interval; None where there are too few rounds for one."""

    value: float
    low: float | None
    high: float | None

    def cells(self) -> list[str]:
        """The ratio and its interval, for a table."""
        return [f"{self.value:.3f}", "" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"]


def paired_ratio(seconds: Array, baseline: Array) -> Ratio:
    """The median of the ratios in each round: what slows a whole round down cancels out.

    The interval is the median's from order statistics, whatever the times' distribution is: of n rounds, the values
    of rank k + 1 and n - k, with the largest k for which a fair coin, tossed n times, shows at most k heads with a
    probability of 2.5 % or less. It takes six rounds.

    Args:
        seconds: (rounds,)
        baseline: (rounds,), of the same rounds.
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
