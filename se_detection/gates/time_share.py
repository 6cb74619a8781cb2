"""The share of a detector's time that its gates take."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from .recorder import Gates

# Repeats for each image; the fastest counts, as other work on the machine disturbs it least.
REPEATS = 5


def measure_gate_time(model: nn.Module, gates: Gates, batches: Sequence[Any]) -> dict[str, Any]:
    """Times all gates and the whole detector in the same forward passes, so that other work slows both.

    A gate's time includes the squeeze, both layers and the activation, but not the multiplication.

    Args:
        model: in evaluation mode.
        gates: from :func:`se_gates`.
        batches: inputs of the model, with one image each.

    Returns:
        Medians over images: `seconds_per_image` of the whole detector; `share`, for each gate its share of that time;
        and `jitter`, the median repeat over the fastest repeat, minus 1, which is large on a busy machine, where the
        shares are rough. Also `device`, the GPU's name or `cpu`, and `images`, their number.
    """
    # (images, repeats, 1 + gates)
    seconds = np.array([[_time(model, gates, batch) for _ in range(REPEATS)] for batch in batches])
    fastest = seconds.min(axis=1)
    shares = np.median(fastest[:, 1:] / fastest[:, :1], axis=0)
    return {
        "device": torch.cuda.get_device_name() if _on_gpu(model) else "cpu",
        "images": len(batches),
        "seconds_per_image": float(np.median(fastest[:, 0])),
        "jitter": float(np.median(np.median(seconds[:, :, 0], axis=1) / fastest[:, 0])) - 1,
        "share": dict(zip(gates, shares.tolist(), strict=True)),
    }


def _time(model: nn.Module, gates: Gates, batch: Any) -> list[float]:
    """Seconds of the whole model, then of each gate."""
    mark, seconds = (_gpu_mark, _gpu_seconds) if _on_gpu(model) else (time.perf_counter, lambda begun, end: end - begun)
    marks: dict[str, list[Any]] = {name: [] for name in gates}
    with torch.inference_mode(), ExitStack() as hooks:
        for name, gate in gates.items():
            # A mark when the squeeze begins, and one when the activation ends.
            keep = partial(_keep, marks[name], mark)
            hooks.callback(gate.squeeze.register_forward_pre_hook(keep).remove)
            hooks.callback(gate.activation.register_forward_hook(keep).remove)
        whole = [mark()]
        model(batch)
        whole.append(mark())
    return [sum(map(seconds, times[::2], times[1::2])) for times in (whole, *marks.values())]


def _keep(marks: list[Any], mark: Callable[[], Any], *_: Any) -> None:
    marks.append(mark())


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _gpu_mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _gpu_seconds(begun: Any, end: Any) -> float:
    end.synchronize()
    return begun.elapsed_time(end) / 1000
