"""Timing in turn: one pass of each in every round, so that what else a machine does hits all alike."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch

Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


def clock_of(device: str) -> Clock:
    """A clock in seconds; on a GPU it waits until all that was asked for is done."""
    if device == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def rounds_in_turn(
    runs: Mapping[Key, Callable[[], object]], rounds: int, *, clock: Clock, seed: int = 0
) -> Iterator[dict[Key, float]]:
    """Runs each once a round, in another random order every time.

    Args:
        runs: warmed up.
        clock: of :func:`clock_of`.
        seed: of the orders.

    Yields:
        The seconds of each, after every round.
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
