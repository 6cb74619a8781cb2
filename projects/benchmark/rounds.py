"""Timing in turn: each round runs every candidate once, so that other load on the machine affects all alike."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.benchmark import timer

Array = NDArray[np.float64]
Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


def rounds_in_turn(
    runs: Mapping[Key, Callable[[], object]], rounds: int, *, clock: Clock = timer, seed: int = 0
) -> Iterator[dict[Key, float]]:
    """Runs each candidate once per round, in a new random order each time.

    Args:
        runs: the candidates; must be warmed up.
        clock: in seconds; by default PyTorch's, which waits on a GPU until all submitted work is done.
        seed: for the orders.

    Yields:
        After every round, the seconds of each candidate.
    """
    names = list(runs)
    orders = np.random.default_rng(seed)
    for _ in range(rounds):
        seconds = {}
        for place in orders.permutation(len(names)):
            began = clock()
            runs[names[place]]()
            seconds[names[place]] = clock() - began
        yield seconds


# An interval whose ends differ by a larger factor is not shown.
WIDEST = 1.5
NOISY = "too noisy to tell"


class Ratio(NamedTuple):
    """The median over rounds, with its 95 % interval; `low` and `high` are None with fewer than 6 rounds."""

    value: float
    low: float | None
    high: float | None

    def cells(self) -> list[str]:
        """The ratio and its interval, for a table; neither if the interval is too wide to be of use."""
        if self.low is None or self.high is None:
            return [f"{self.value:.3f}", ""]
        if self.high > WIDEST * self.low:
            return ["–", NOISY]
        return [f"{self.value:.3f}", f"{self.low:.3f} to {self.high:.3f}"]


def paired_ratio(seconds: Array, baseline: Array) -> Ratio:
    """The median of the rounds' ratios. A slowdown of a whole round cancels out.

    The interval is that of the sign test, which holds for any distribution of the times.

    Args:
        seconds: (rounds,)
        baseline: (rounds,), measured in the same rounds.
    """
    # Imported here because it takes a second.
    from scipy.stats import quantile_test

    ratios = seconds / baseline
    interval = quantile_test(ratios).confidence_interval(0.95)
    low, high = (None if np.isnan(end) else float(end) for end in interval)
    return Ratio(float(np.median(ratios)), low, high)
