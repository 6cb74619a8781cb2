"""Timing in turn: each round runs every candidate once, so that other load on the machine affects all alike."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch

Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


def clock_of(device: str) -> Clock:
    """A clock in seconds; on a GPU it waits until all submitted work is done."""
    if device == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def rounds_in_turn(
    runs: Mapping[Key, Callable[[], object]], rounds: int, *, clock: Clock, seed: int = 0
) -> Iterator[dict[Key, float]]:
    """Runs each candidate once per round, in a new random order each time.

    Args:
        runs: the candidates; must be warmed up.
        clock: see :func:`clock_of`.
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
