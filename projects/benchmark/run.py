"""Runs a benchmark, one case after the other."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .case import Case
from .rows import Row, rows_of
from .timed_models import STOCK, models_for
from .times import WARM_UP, measure_case


@dataclass
class Benchmark:
    """The results of a benchmark.

    Args:
        machine: see :func:`describe_machine`.
        rows: one for each model in each case.
        skipped: a line for each model that could not run in a case.
        interrupted: whether Ctrl-C stopped it.
    """

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False


def run_benchmark(
    cases: Sequence[Case], models: Sequence[str], *, rounds: int, compile_mode: str = "default", seed: int = 0
) -> Benchmark:
    """Measures models in all cases, with a progress bar. Ctrl-C ends it; the results so far are returned.

    Args:
        cases: at least one, all on one device.
        models: from :data:`MODEL_NAMES`; `stock` is always measured.
        rounds: per case, after the warm-up.
        compile_mode: a mode of `torch.compile`.
        seed: for the order of models in each round.
    """
    result = Benchmark(describe_machine(cases[0].device))
    first: dict[tuple[str, str, str], float] = {}
    passes = [len(models_for(case.mode, models)) * (WARM_UP + rounds) for case in cases]
    with tqdm(
        total=sum(case.relative_cost * number for case, number in zip(cases, passes, strict=True)),
        bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} to go",
        disable=None,
    ) as bar:
        for case in cases:

            def progress(text: str, made: int, cost: float = case.relative_cost) -> None:
                bar.set_description(text)
                bar.update(made * cost)

            times = measure_case(
                case,
                models_for(case.mode, models),
                rounds=rounds,
                compile_mode=compile_mode,
                seed=seed,
                progress=progress,
            )
            result.skipped += [f"{model} in {case}: {reason}" for model, reason in times.skipped.items()]
            if times.seconds:
                group = (case.part, case.mode, case.dtype)
                result.rows += rows_of(times, first.setdefault(group, float(np.median(times.seconds[STOCK]))))
            if times.interrupted:
                result.interrupted = True
                break
    return result


def describe_machine(device: str) -> dict[str, Any]:
    """The hardware and settings that determine times."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
