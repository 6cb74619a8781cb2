"""SIGTERM and SIGINT as a request to stop: after the current step, with a checkpoint."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.workers import SIGNALS, waits_for_batch

# Signals within this time are one request: Ctrl-C reaches a process from the terminal and again from its parent.
SAME_REQUEST_SECONDS = 2.0
# How long a request waits for a data loader. Several processes, which then save nothing, are more patient.
PATIENCE, SHARED_PATIENCE = 5.0, 20.0
# Windows has no timer of this kind: there, a request waits for the data loader.
HAS_TIMER = hasattr(signal, "setitimer")


class Interrupted(SystemExit):
    """Ends a run that was asked to stop, with exit code 128 + the signal's number, as in a shell."""


class RankMaximum:
    """Max-reduces small integers over all processes (gloo)."""

    def __init__(self) -> None:
        # On the CPU, so that no GPU has to wait.
        self.group = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes; all must call it."""
        if self.group is None:
            return list(numbers)
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return [int(number) for number in tensor]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handles the signals; restores the previous handlers afterwards."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class StopRequest:
    """Remembers the first signal while listening; a second one ends the process at once.

    If a data loader does not deliver for some seconds after the first, :class:`Interrupted` is raised where it waits.
    """

    def __init__(self, agreement: RankMaximum) -> None:
        self.agreement = agreement
        self.received = 0
        self._received_at = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals. Only the main thread can: in another one, this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received = 0
        before = signal.signal(signal.SIGALRM, self._give_up) if HAS_TIMER else None
        try:
            with handling(self._receive):
                yield
        finally:
            if HAS_TIMER:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._received_at = number, time.monotonic()
            if HAS_TIMER:
                signal.setitimer(signal.ITIMER_REAL, SHARED_PATIENCE if self.agreement.group else PATIENCE)
        elif time.monotonic() - self._received_at > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        """Stops a process whose data loader does not deliver."""
        if not waits_for_batch(frame):
            return
        if self.agreement.group is None:
            raise Interrupted(128 + self.received)
        # The others wait for this process, so they can't agree to stop, and the state can't be gathered.
        name = signal.Signals(self.received).name
        sys.stderr.write(f"error: {name}: process {comm.get_rank()} stops; its data loader does not deliver\n")
        sys.stderr.flush()
        os._exit(128 + self.received)

    def raise_if_any(self) -> None:
        """Raises :class:`Interrupted` in all processes if any was asked to stop; all must call it."""
        if number := self.agreement.largest(self.received)[0]:
            raise Interrupted(128 + number)


class InterruptibleEvaluator(DatasetEvaluator):
    """An evaluator that can be interrupted.

    It stops at once when its own process is asked to stop. If another process is, it stops before the results.

    Args:
        build: builds the evaluator when it is first needed: a data set may create its files when it is first loaded.
        stop: the request to stop.
    """

    def __init__(self, build: Callable[[], DatasetEvaluator], stop: StopRequest) -> None:
        self.build = build
        self.stop = stop

    def reset(self) -> None:
        """Builds the evaluator and resets it."""
        self.evaluator = self.build()
        self.evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Processes a batch, unless asked to stop."""
        if self.stop.received:
            self.stop.raise_if_any()
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        """The results of the evaluator."""
        self.stop.raise_if_any()
        return self.evaluator.evaluate()
