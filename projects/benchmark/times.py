"""One case: its arms built, warmed up, and timed in turn."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .arms import ARMS, BOUND, STOCK, TimedModel
from .bound import Bound
from .case import Case
from .memory import peak_bytes
from .ratio import Array
from .rounds import Clock, clock_of, rounds_in_turn
from .workload import Inference, make_workload

# Passes of each arm before the first round, the last of them watched for its memory.
WARM_UP = 3


@dataclass
class Times:
    """What was measured in a case.

    Args:
        case: the case.
        seconds: of each arm, (rounds,); none where `stock` could not run.
        memory: peak bytes of each arm; None where they can't be known.
        skipped: why an arm isn't there.
        interrupted: whether a person stopped it; the rounds that were whole by then are there.
    """

    case: Case
    seconds: dict[str, Array] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def measure_case(
    case: Case,
    arms: Sequence[str],
    *,
    rounds: int,
    compile_mode: str,
    seed: int,
    progress: Callable[[str, int], None],
    clock: Clock | None = None,
) -> Times:
    """Times arms in turn; one that can't run is left out, and without `stock` there are no times.

    Args:
        case: the case.
        arms: of :func:`arms_of`.
        rounds: how often each is timed.
        compile_mode: of `torch.compile`.
        seed: of the order of arms in each round.
        progress: told what is being done, and of how many passes.
        clock: the device's unless given.
    """
    times = Times(case)
    runs: dict[str, Callable[[], object]] = {}
    measured: list[dict[str, float]] = []
    bound: Bound | None = None
    try:
        # Code that cases share would be compiled anew only so often, and then run uncompiled.
        torch.compiler.reset()
        gc.collect()
        for name in arms:
            progress(f"{case}: {name}", 0)
            try:
                if name == BOUND:
                    bound = Bound(case)
                else:
                    runs[name], times.memory[name] = _prepare(ARMS[name], case, compile_mode)
            except RuntimeError as error:
                times.skipped[name] = _reason(error)
                if name == STOCK:
                    return times
            progress(f"{case}: {name}", WARM_UP)
        rates = bound.runs if bound else {}
        for seconds in rounds_in_turn({**runs, **rates}, rounds, clock=clock or clock_of(case.device), seed=seed):
            measured.append(seconds)
            progress(str(case), len(arms))
    except KeyboardInterrupt:
        times.interrupted = True
    except RuntimeError as error:
        times.skipped[f"rounds from the {len(measured) + 1}th on"] = _reason(error)
    if measured:
        by_name = {name: np.array([seconds[name] for seconds in measured]) for name in measured[0]}
        times.seconds = {name: by_name[name] for name in runs}
        if bound:
            times.seconds[BOUND] = bound.seconds(by_name)
    return times


def _reason(error: RuntimeError) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _prepare(arm: TimedModel, case: Case, compile_mode: str) -> tuple[Inference, int | None]:
    """A warm arm, and its peak memory."""
    workload = make_workload(arm.build(case, compile_mode), case, autocast=arm.autocast(case))
    for _ in range(WARM_UP - 1):
        workload()
    memory = peak_bytes(workload, case.device)
    if case.device == "cuda" and arm.compiled and compile_mode != "default":
        # CUDA graphs keep memory of their own, of which PyTorch's counters know little.
        return workload, None
    return workload, memory
