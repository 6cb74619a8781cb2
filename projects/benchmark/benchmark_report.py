"""A benchmark as text tables and as JSON."""

from dataclasses import asdict
from itertools import groupby
from typing import Any

from tabulate import tabulate

from .rows import Row
from .run import Benchmark
from .timed_models import STOCK

NOTE = """\
ratio: time over stock's in the same round, median over rounds. SE / plain: time over that of the plain network run in
the same way (eager: stock, fused: stock-fused, compiled: stock-compiled); in training, ours also folds FrozenBN.
spread: interquartile range of the model's times over their median. memory: weights and the tensors of a pass at its
peak, over stock's. bound: a lower bound of our time, from the bytes and operations of the layers and the speed of a
large copy and a large convolution in the same rounds. timm-legacy has the strides in the first 1×1 of a stage, which
saves operations; the others have them in the 3×3."""
HEADINGS = ["model", "ratio", "95 % interval", "SE / plain", "95 % interval", "spread", "memory"]


def benchmark_table(benchmark: Benchmark) -> str:
    """A table for each case, and below them notes and the skipped models. Milliseconds are shown on a GPU only."""
    machine = benchmark.machine
    blocks = [f"{machine['device']}, {machine['threads']} CPU threads, PyTorch {machine['torch']}"]
    for case, rows in groupby(benchmark.rows, key=lambda row: row.case):
        rows_of_case = list(rows)
        headings = [*HEADINGS, "ms"] if case.device == "cuda" else HEADINGS
        table = tabulate(
            [_cells(row)[: len(headings)] for row in rows_of_case],
            headings,
            disable_numparse=True,
            colalign=["left", *["right"] * (len(headings) - 1)],
        )
        blocks.append(f"R{case.depth}, {case}: {rows_of_case[0].rounds} rounds\n\n{table}")
    if benchmark.rows:
        blocks.append(NOTE)
    if benchmark.skipped:
        blocks.append("\n".join(["Skipped:", *(f"  {line}" for line in benchmark.skipped)]))
    if benchmark.interrupted:
        blocks.append("Interrupted: these are the results so far.")
    return "\n\n".join(blocks)


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        *(["1", ""] if row.model == STOCK else row.ratio.cells()),
        *(["", ""] if row.over_plain is None else row.over_plain.cells()),
        f"{100 * row.spread:.0f} %",
        "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
        "" if row.median_ms is None else f"{row.median_ms:.2f}",
    ]


def benchmark_json(benchmark: Benchmark, command: str) -> dict[str, Any]:
    """The content of the JSON file: `machine`, `command`, `rows`, `skipped`, `interrupted`.

    A row has `arm` (the model's name), the case's fields, `rounds`, `ratio`, `low`, `high`, `over_plain`,
    `over_plain_low`, `over_plain_high`, `spread`, `cost`, `memory_ratio` and `median_ms`; see :class:`Row`.
    """
    return {
        "machine": benchmark.machine,
        "command": command,
        "rows": [_row(row) for row in benchmark.rows],
        "skipped": benchmark.skipped,
        "interrupted": benchmark.interrupted,
    }


def _row(row: Row) -> dict[str, Any]:
    plain = row.over_plain
    return {
        "arm": row.model,
        **asdict(row.case),
        "rounds": row.rounds,
        "ratio": row.ratio.value,
        "low": row.ratio.low,
        "high": row.ratio.high,
        "over_plain": plain and plain.value,
        "over_plain_low": plain and plain.low,
        "over_plain_high": plain and plain.high,
        "spread": row.spread,
        "cost": row.cost,
        "memory_ratio": row.memory_ratio,
        "median_ms": row.median_ms,
    }
