"""A benchmark as text tables."""

from itertools import groupby
from typing import Any

from tabulate import tabulate

from se_detection.errors import counted

from .networks import Case
from .rounds import NOISY, WIDEST, Ratio
from .timed_models import STOCK

NOTE = """\
ratio: time over stock's in the same round, median over rounds. SE / plain: time over that of the plain network run in
the same way (eager: stock, fused: stock-fused, compiled: stock-compiled); in training, ours also folds FrozenBN.
spread: interquartile range of the model's times over their median. memory: weights and the tensors of a pass at its
peak, over stock's. bound: a lower bound of our time, from the bytes and operations of the layers and the speed of a
large copy, convolution and matrix product in the same rounds. timm-legacy has the strides in the first 1×1 of a stage,
which saves operations; the others have them in the 3×3."""
NOISY_NOTE = f"""\
{NOISY}: the ends of the 95 % interval differ by more than a factor of {WIDEST}. Close other programs, or use more
--rounds."""
DEPLOYED_NOTE = """\
Whole detectors in several runtimes: memory is the peak of a process that only runs the detector, over stock's. AP: the
difference to stock's on the run's test set, with its 95 % interval."""
HEADINGS = ["model", "ratio", "95 % interval", "SE / plain", "95 % interval", "spread", "memory"]


def benchmark_table(benchmark: dict[str, Any]) -> str:
    """A table for each case of :func:`run_benchmark`, notes, and the skipped models. Only a GPU has milliseconds."""
    machine = benchmark["machine"]
    blocks = [f"{machine['device']}, {counted(machine['threads'], 'CPU thread')}, PyTorch {machine['torch']}"]
    for case, rows in groupby(
        benchmark["rows"], key=lambda row: Case(**{key: row[key] for key in Case.__annotations__})
    ):
        rows_of_case = list(rows)
        deployed = any("ap" in row for row in rows_of_case)
        extra = ["ms"] if case.device == "cuda" else ["MB", "AP"] if deployed else []
        headings = [*HEADINGS, *extra]
        cells = [_cells(row, deployed)[: len(headings)] for row in rows_of_case]
        alignment = ["left", *["right"] * (len(headings) - 1)]
        table = tabulate(cells, headings, disable_numparse=True, colalign=alignment)
        blocks.append(f"R{case.depth}, {case}: {counted(rows_of_case[0]['rounds'], 'round')}\n\n{table}")
    if benchmark["rows"]:
        blocks.append(NOTE)
    if any("ap" in row for row in benchmark["rows"]):
        blocks.append(DEPLOYED_NOTE)
    if NOISY in "".join(blocks):
        blocks.append(NOISY_NOTE)
    if benchmark["skipped"]:
        blocks.append("\n".join(["Skipped:", *(f"  {line}" for line in benchmark["skipped"])]))
    if benchmark["interrupted"]:
        blocks.append("Interrupted: these are the results so far.")
    return "\n\n".join(blocks)


def ap_cell(ap: dict[str, Any] | None) -> str:
    """AP, and the difference to the original's with its interval; empty if it was not measured."""
    if not ap:
        return ""
    value, low, high = (ap["difference"].get(name) for name in ("value", "low", "high"))
    interval = "" if low is None else f" ({low:+.2f} to {high:+.2f})"
    return f"{ap['exported']:.2f}, {value:+.2f}{interval}"


def _cells(row: dict[str, Any], deployed: bool) -> list[str]:
    ratio = Ratio(row["ratio"], row["low"], row["high"])
    over_plain = Ratio(row["over_plain"], row["over_plain_low"], row["over_plain_high"])
    return [
        row["arm"],
        *(["1", ""] if row["arm"] == STOCK else ratio.cells()),
        *(["", ""] if over_plain.value is None else over_plain.cells()),
        f"{100 * row['spread']:.0f} %",
        "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        *([str(row.get("megabytes", "")), ap_cell(row.get("ap"))] if deployed else []),
        "" if row["median_ms"] is None else f"{row['median_ms']:.2f}",
    ]
