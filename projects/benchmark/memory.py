"""The peak memory of a model."""

import os

import torch
from torch.profiler import ProfilerActivity, profile

from .workload import Inference

# The profiler's event of an allocation, or with negative bytes of a release.
MEMORY_EVENT = "[memory]"


def peak_bytes(workload: Inference, device: str) -> int:
    """The bytes kept between passes (weights, and in training the optimizer's state), and the most that a pass adds.

    Only memory of PyTorch's allocators is counted, on the CPU as its profiler reports it. Memory that libraries such as
    oneDNN or cuDNN allocate is not.

    Args:
        workload: must be warmed up.
    """
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in workload.tensors()}
    added = _added_on_cpu(workload) if device == "cpu" else _added_on_gpu(workload)
    return sum(kept.values()) + added


def _added_on_cpu(workload: Inference) -> int:
    # Silences the profiler's warnings about missing GPUs.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        workload()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == MEMORY_EVENT:
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def _added_on_gpu(workload: Inference) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    workload()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
