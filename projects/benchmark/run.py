"""Runs a benchmark: builds the models of each case, warms them up, and times them in turn."""

import gc
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from se_detection.errors import UserError

from .bound import Bound
from .deployment import Deployment
from .networks import Case
from .rounds import Array, paired_ratio, rounds_in_turn
from .timed_models import BOUND, EXPORTED, MODELS, PLAIN_OF, STOCK, TimedModel, models_for
from .workload import Inference, make_workload, peak_bytes

# Passes of each model before the first round; memory is measured in the last.
WARM_UP = 3


@dataclass
class CaseTimes:
    """The times of a case.

    Args:
        rounds: the seconds of each model in each complete round.
        memory: peak bytes of each model; None if unknown.
        facts: further keys of each model's row.
        skipped: the reason for each model that could not run.
        bound: the lower bound, if it is wanted.
    """

    rounds: list[dict[str, float]] = field(default_factory=list)
    memory: dict[str, int | None] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    bound: Bound | None = None

    def seconds(self) -> dict[str, Array]:
        """(rounds,) for each model and for the bound; empty without a complete round."""
        if not self.rounds:
            return {}
        measured = {name: np.array([seconds[name] for seconds in self.rounds]) for name in self.rounds[0]}
        models = {name: measured[name] for name in self.memory}
        return {**models, BOUND: self.bound.seconds(measured)} if self.bound else models


def run_benchmark(
    cases: Sequence[Case],
    models: Sequence[str],
    *,
    rounds: int,
    compile_mode: str = "default",
    seed: int = 0,
    run: Path | None = None,
    evaluate: bool = False,
) -> dict[str, Any]:
    """Measures models in all cases, with a progress bar. Ctrl-C ends it; the results so far are returned.

    Args:
        cases: at least one, all on one device.
        models: from :data:`MODEL_NAMES`; `stock` is always measured.
        rounds: per case, after the warm-up.
        compile_mode: a mode of `torch.compile`.
        seed: for the order of models in each round.
        run, evaluate: see :class:`~projects.benchmark.deployment.Deployment`.

    Returns:
        The content of the JSON file: `machine`, the `rows` of :func:`rows_of`, `skipped` (a line for each model that
        could not run in a case), and whether it was `interrupted`.
    """
    machine = describe_machine(cases[0].device)
    result: dict[str, Any] = {"machine": machine, "rows": [], "skipped": [], "interrupted": False}
    first: dict[tuple[str, str, str], float] = {}
    passes = sum(len(models_for(case.mode, models)) * (WARM_UP + rounds) for case in cases)
    # In a log, a line every ten seconds.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=passes, unit="pass", mininterval=interval, maxinterval=interval) as bar:
        for case in cases:
            times = CaseTimes()
            try:
                names = models_for(case.mode, models)
                deployment = Deployment(case, run, evaluate=evaluate) if run or set(names) & set(EXPORTED) else None
                if deployment:
                    case = deployment.case
                measure_case(case, names, times, rounds, compile_mode, seed, bar, deployment)
            except KeyboardInterrupt:
                result["interrupted"] = True
            result["skipped"] += [f"{model} in {case}: {reason}" for model, reason in times.skipped.items()]
            if seconds := times.seconds():
                group = (case.part, case.mode, case.dtype)
                own = first.setdefault(group, float(np.median(seconds[STOCK])))
                result["rows"] += rows_of(case, seconds, times.memory, own, times.facts)
            if result["interrupted"]:
                break
    return result


def measure_case(
    case: Case,
    models: Sequence[str],
    times: CaseTimes,
    rounds: int,
    compile_mode: str,
    seed: int,
    bar: Any,
    deployment: Deployment | None = None,
) -> None:
    """Adds the times of a case. A model that fails is skipped; if `stock` fails, nothing is timed."""
    # torch.compile limits recompilations of shared code, and then runs it uncompiled.
    torch.compiler.reset()
    gc.collect()
    runs: dict[str, Callable[[], object]] = {}
    for name in models:
        bar.set_description(f"{case}: {name}")
        try:
            if name == BOUND:
                times.bound = Bound(case)
            elif deployment:
                model = EXPORTED.get(name) or MODELS[name]
                runs[name], times.memory[name], times.facts[name] = deployment.prepare(model, compile_mode)
                for _ in range(WARM_UP):
                    runs[name]()
            else:
                runs[name], times.memory[name] = prepare(MODELS[name], case, compile_mode)
        except (RuntimeError, UserError) as error:
            times.skipped[name] = _reason(error)
            if name == STOCK:
                return
        bar.update(WARM_UP)
    rates = times.bound.runs if times.bound else {}
    try:
        for seconds in rounds_in_turn({**runs, **rates}, rounds, seed=seed):
            times.rounds.append(seconds)
            bar.update(len(models))
    except RuntimeError as error:
        times.skipped[f"rounds from the {len(times.rounds) + 1}th on"] = _reason(error)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def prepare(model: TimedModel, case: Case, compile_mode: str) -> tuple[Inference, int | None]:
    """A warmed-up model, and its peak memory."""
    workload = make_workload(model.build(case, compile_mode), case, autocast=model.autocast(case))
    for _ in range(WARM_UP - 1):
        workload()
    memory = peak_bytes(workload, case.device)
    # PyTorch's counters do not include the private memory of CUDA graphs.
    graphs = case.device == "cuda" and model.compiled and compile_mode != "default"
    return workload, None if graphs else memory


def rows_of(
    case: Case,
    seconds: dict[str, Array],
    memory: dict[str, int | None],
    first: float,
    facts: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A row for each model that was timed.

    A row has `arm` (the model's name), the case's fields, `rounds`, `ratio`, `low` and `high` (time over stock's),
    `over_plain`, `over_plain_low` and `over_plain_high` (time over that of the plain network run in the same way, or
    None), `spread` (interquartile range of its times over their median), `cost` (its median time over `first`),
    `memory_ratio` (peak memory over stock's, None if unknown) and `median_ms` (on a GPU only). Of whole detectors in
    several runtimes, the memory is that of a process, and a row also has `megabytes` (of the file) and `ap`.

    Args:
        case: the case.
        seconds: (rounds,) for each model.
        memory: peak bytes of each model.
        first: stock's median in the first case of the same part, mode and precision, in seconds.
        facts: further keys of each model's row.
    """
    rows = []
    for name, own in seconds.items():
        low, median, high = np.percentile(own, [25, 50, 75])
        plain = seconds.get(PLAIN_OF.get(name, ""))
        over_plain = (None, None, None) if plain is None else paired_ratio(own, plain)
        own_memory, stock_memory = memory.get(name), memory[STOCK]
        rows.append(
            {
                "arm": name,
                **asdict(case),
                "rounds": len(own),
                **dict(zip(("ratio", "low", "high"), paired_ratio(own, seconds[STOCK]), strict=True)),
                **dict(zip(("over_plain", "over_plain_low", "over_plain_high"), over_plain, strict=True)),
                "spread": float((high - low) / median),
                "cost": float(median) / first,
                "memory_ratio": own_memory / stock_memory if own_memory and stock_memory else None,
                "median_ms": 1000 * float(median) if case.device == "cuda" else None,
                **facts.get(name, {}),
            }
        )
    return rows


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
