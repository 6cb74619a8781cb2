"""Times a case: builds its models, warms them up, and times them in turn."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .bound import Bound
from .case import Case
from .memory import peak_bytes
from .ratio import Array
from .rounds import Clock, clock_of, rounds_in_turn
from .timed_models import BOUND, MODELS, STOCK, TimedModel
from .workload import Inference, make_workload

# Passes of each model before the first round; memory is measured in the last.
WARM_UP = 3


@dataclass
class Times:
    """The times of a case.

    Args:
        case: the case.
        seconds: (rounds,) for each model; empty if `stock` could not run.
        memory: peak bytes of each model; None if unknown.
        skipped: the reason for each model that could not run.
        interrupted: whether Ctrl-C stopped it; complete rounds are kept.
    """

    case: Case
    seconds: dict[str, Array] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def measure_case(
    case: Case,
    models: Sequence[str],
    *,
    rounds: int,
    compile_mode: str,
    seed: int,
    progress: Callable[[str, int], None],
    clock: Clock | None = None,
) -> Times:
    """Times models in turn. A model that fails is skipped; if `stock` fails, there are no times.

    Args:
        case: the case.
        models: see :func:`models_for`.
        rounds: number of timings of each model.
        compile_mode: a mode of `torch.compile`.
        seed: for the order of models in each round.
        progress: called with a description and the number of finished passes.
        clock: by default the device's.
    """
    times = Times(case)
    runs: dict[str, Callable[[], object]] = {}
    measured: list[dict[str, float]] = []
    bound: Bound | None = None
    try:
        # torch.compile limits recompilations of shared code, and then runs it uncompiled.
        torch.compiler.reset()
        gc.collect()
        for name in models:
            progress(f"{case}: {name}", 0)
            try:
                if name == BOUND:
                    bound = Bound(case)
                else:
                    runs[name], times.memory[name] = _prepare(MODELS[name], case, compile_mode)
            except RuntimeError as error:
                times.skipped[name] = _reason(error)
                if name == STOCK:
                    return times
            progress(f"{case}: {name}", WARM_UP)
        rates = bound.runs if bound else {}
        for seconds in rounds_in_turn({**runs, **rates}, rounds, clock=clock or clock_of(case.device), seed=seed):
            measured.append(seconds)
            progress(str(case), len(models))
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


def _prepare(model: TimedModel, case: Case, compile_mode: str) -> tuple[Inference, int | None]:
    """A warmed-up model, and its peak memory."""
    workload = make_workload(model.build(case, compile_mode), case, autocast=model.autocast(case))
    for _ in range(WARM_UP - 1):
        workload()
    memory = peak_bytes(workload, case.device)
    if case.device == "cuda" and model.compiled and compile_mode != "default":
        # PyTorch's counters do not include the private memory of CUDA graphs.
        return workload, None
    return workload, memory
