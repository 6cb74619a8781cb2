"""The part of a detector's time that its gates take."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..modeling.squeeze_excitation import SqueezeExcitation
from .recorder import Gates

# Of each image; the fastest counts, which other work on the machine disturbs least.
REPEATS = 5
# A mark in time, and the seconds between two of them, once all work is done.
Mark = Any
TimeInterval = tuple[Mark, Mark]


@dataclass(frozen=True)
class GateTime:
    """What was measured: `share` of the detector's time for each gate, medians over images.

    Args:
        device: the GPU's name, or `cpu`.
        images: how many were timed.
        image: seconds that the detector takes for one.
        unrest: by what part the middle of the repeats took longer than the fastest; much on a machine that does other
            work, where the shares are rough.
    """

    device: str
    images: int
    image: float
    unrest: float
    share: dict[str, float]


def measure_gate_time(model: nn.Module, gates: Gates, batches: Sequence[Any]) -> GateTime:
    """Times every gate and the whole detector in the same forward calls: what else a machine does slows both.

    A gate's time is that of squeeze, both layers and activation. The multiplication isn't in it.

    Args:
        model: in evaluation mode.
        gates: of :func:`se_gates`.
        batches: what the model takes, an image each.
    """
    # (images, repeats, whole and gates)
    seconds = np.array([[_time(model, gates, batch) for _ in range(REPEATS)] for batch in batches])
    fastest = seconds.min(axis=1)
    shares = np.median(fastest[:, 1:] / fastest[:, :1], axis=0)
    return GateTime(
        device=torch.cuda.get_device_name() if _on_gpu(model) else "cpu",
        images=len(batches),
        image=float(np.median(fastest[:, 0])),
        unrest=float(np.median(np.median(seconds[:, :, 0], axis=1) / fastest[:, 0])) - 1,
        share={name: float(share) for name, share in zip(gates, shares, strict=True)},
    )


def _time(model: nn.Module, gates: Gates, batch: Any) -> list[float]:
    """Seconds of the whole model, and of each gate."""
    mark, seconds = (_gpu_mark, _gpu_seconds) if _on_gpu(model) else (time.perf_counter, _cpu_seconds)
    intervals: dict[str, list[TimeInterval]] = {name: [] for name in gates}
    with torch.inference_mode(), ExitStack() as hooks:
        for name, gate in gates.items():
            for hook in _hooks(gate, mark, intervals[name]):
                hooks.callback(hook.remove)
        started = mark()
        model(batch)
        ended = mark()
    return [seconds((started, ended)), *(sum(map(seconds, found)) for found in intervals.values())]


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _hooks(gate: SqueezeExcitation, mark: Callable[[], Mark], intervals: list[TimeInterval]) -> list[Any]:
    begun: list[Mark] = []

    def begin(*_: Any) -> None:
        begun.append(mark())

    def end(*_: Any) -> None:
        intervals.append((begun.pop(), mark()))

    return [gate.squeeze.register_forward_pre_hook(begin), gate.activation.register_forward_hook(end)]


def _gpu_mark() -> Mark:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _gpu_seconds(interval: TimeInterval) -> float:
    interval[1].synchronize()
    return interval[0].elapsed_time(interval[1]) / 1000


def _cpu_seconds(interval: TimeInterval) -> float:
    return float(interval[1] - interval[0])
