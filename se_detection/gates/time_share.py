"""The share of a detector's time that its gates take."""

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

# Repeats for each image; the fastest counts, as other work on the machine disturbs it least.
REPEATS = 5
# A point in time (a CUDA event on a GPU), and an interval of two.
Mark = Any
TimeInterval = tuple[Mark, Mark]


@dataclass(frozen=True)
class GateTime:
    """Measured times, as medians over images.

    Args:
        device: the GPU's name, or `cpu`.
        images: number of timed images.
        seconds_per_image: time of the whole detector.
        jitter: median repeat over the fastest repeat, minus 1; large on a busy machine, where the shares are rough.
        share: for each gate, its share of the detector's time.
    """

    device: str
    images: int
    seconds_per_image: float
    jitter: float
    share: dict[str, float]


def measure_gate_time(model: nn.Module, gates: Gates, batches: Sequence[Any]) -> GateTime:
    """Times all gates and the whole detector in the same forward passes, so that other work slows both.

    A gate's time includes the squeeze, both layers and the activation, but not the multiplication.

    Args:
        model: in evaluation mode.
        gates: from :func:`se_gates`.
        batches: inputs of the model, with one image each.
    """
    # (images, repeats, 1 + gates)
    seconds = np.array([[_time(model, gates, batch) for _ in range(REPEATS)] for batch in batches])
    fastest = seconds.min(axis=1)
    shares = np.median(fastest[:, 1:] / fastest[:, :1], axis=0)
    return GateTime(
        device=torch.cuda.get_device_name() if _on_gpu(model) else "cpu",
        images=len(batches),
        seconds_per_image=float(np.median(fastest[:, 0])),
        jitter=float(np.median(np.median(seconds[:, :, 0], axis=1) / fastest[:, 0])) - 1,
        share={name: float(share) for name, share in zip(gates, shares, strict=True)},
    )


def _time(model: nn.Module, gates: Gates, batch: Any) -> list[float]:
    """Seconds of the whole model, then of each gate."""
    mark, seconds = (_gpu_mark, _gpu_seconds) if _on_gpu(model) else (time.perf_counter, _cpu_seconds)
    intervals: dict[str, list[TimeInterval]] = {name: [] for name in gates}
    with torch.inference_mode(), ExitStack() as hooks:
        for name, gate in gates.items():
            for hook in _hooks(gate, mark, intervals[name]):
                hooks.callback(hook.remove)
        started = mark()
        model(batch)
        ended = mark()
    return [seconds((started, ended)), *(sum(map(seconds, marks)) for marks in intervals.values())]


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
