"""A benchmark: case after case."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .arms import STOCK, arms_of
from .case import Case
from .rows import Row, rows_of
from .times import WARM_UP, measure_case


@dataclass
class Benchmark:
    """What was measured.

    Args:
        machine: on what.
        rows: of each arm in each case.
        skipped: a line for each arm that could not run in a case.
        interrupted: whether a person stopped it.
    """

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False


def run_benchmark(
    cases: Sequence[Case], arms: Sequence[str], *, rounds: int, compile_mode: str = "default", seed: int = 0
) -> Benchmark:
    """Measures arms in all cases, with a progress bar. Ctrl-C ends it, and what was measured by then is returned.

    Args:
        cases: at least one, all of one device.
        arms: of :data:`ARM_NAMES`; `stock` is always measured.
        rounds: of each case, after the warm-up.
        compile_mode: of `torch.compile`.
        seed: of the order of arms in each round.
    """
    result = Benchmark(describe_machine(cases[0].device))
    first: dict[tuple[str, str, str], float] = {}
    passes = [len(arms_of(case.mode, arms)) * (WARM_UP + rounds) for case in cases]
    with tqdm(
        total=sum(case.weight * number for case, number in zip(cases, passes, strict=True)),
        bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} to go",
        disable=None,
    ) as bar:
        for case in cases:

            def progress(what: str, made: int, weight: float = case.weight) -> None:
                bar.set_description(what)
                bar.update(made * weight)

            times = measure_case(
                case,
                arms_of(case.mode, arms),
                rounds=rounds,
                compile_mode=compile_mode,
                seed=seed,
                progress=progress,
            )
            result.skipped += [f"{arm} in {case}: {reason}" for arm, reason in times.skipped.items()]
            if times.seconds:
                group = (case.part, case.mode, case.dtype)
                result.rows += rows_of(times, first.setdefault(group, float(np.median(times.seconds[STOCK]))))
            if times.interrupted:
                result.interrupted = True
                break
    return result


def describe_machine(device: str) -> dict[str, Any]:
    """What decides how long something takes there."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def _cpu_name() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
