"""A benchmark as tables for the screen, and as JSON."""

from dataclasses import asdict
from itertools import groupby
from typing import Any

from tabulate import tabulate

from .arms import STOCK
from .rows import Row
from .run import Benchmark

NOTE = """\
ratio: time over stock's in the same round, the median of the rounds. SE / plain: over that of the plain network run
alike (eager: stock, fused: stock-fused, compiled: stock-compiled); in training ours folds FrozenBN besides. spread:
the interquartile range of the arm's times, as a part of their median. memory: weights and the tensors of a pass at its
peak, over stock's. bound: the least time for ours, from its layers' bytes and operations and the rates of a large copy
and a large convolution in the same rounds. timm-legacy has its strides in the first 1×1 of a stage, where they spare
operations; the others in the 3×3."""
HEADINGS = ["arm", "ratio", "95 % interval", "SE / plain", "95 % interval", "spread", "memory"]


def benchmark_table(benchmark: Benchmark) -> str:
    """A table for each case, with milliseconds only on a GPU; below, what the columns are and what was left out."""
    machine = benchmark.machine
    blocks = [f"{machine['device']}, {machine['threads']} CPU threads, PyTorch {machine['torch']}"]
    for case, rows in groupby(benchmark.rows, key=lambda row: row.case):
        found = list(rows)
        headings = [*HEADINGS, "ms"] if case.device == "cuda" else HEADINGS
        table = tabulate(
            [_cells(row)[: len(headings)] for row in found],
            headings,
            disable_numparse=True,
            colalign=["left", *["right"] * (len(headings) - 1)],
        )
        blocks.append(f"R{case.depth}, {case}: {found[0].rounds} rounds\n\n{table}")
    if benchmark.rows:
        blocks.append(NOTE)
    if benchmark.skipped:
        blocks.append("\n".join(["Left out:", *(f"  {line}" for line in benchmark.skipped)]))
    if benchmark.interrupted:
        blocks.append("Interrupted: this is what was measured by then.")
    return "\n\n".join(blocks)


def _cells(row: Row) -> list[str]:
    return [
        row.arm,
        *(["1", ""] if row.arm == STOCK else row.ratio.cells()),
        *(["", ""] if row.over_plain is None else row.over_plain.cells()),
        f"{100 * row.spread:.0f} %",
        "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
        "" if row.median_ms is None else f"{row.median_ms:.2f}",
    ]


def benchmark_json(benchmark: Benchmark, command: str) -> dict[str, Any]:
    """The same for JSON: `machine`, `command`, `rows`, `skipped`, `interrupted`.

    A row has `arm`, the case's fields, `rounds`, `ratio`, `low`, `high`, `over_plain`, `over_plain_low`,
    `over_plain_high`, `spread`, `cost`, `memory_ratio` and `median_ms`; see :class:`Row`.
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
        "arm": row.arm,
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
