"""Plots a benchmark: ratios with intervals, and times over a sweep of sizes or batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from se_detection.visualization.inline_charts import BASELINE, CANDIDATE, GRID, INK, QUIET, chart_style

from .rows import Row
from .run import Benchmark
from .timed_models import BOUND, MODEL_NAMES

DPI = 160
TIMM = "#009E73"
# The colour shows the network, the line how it is run.
STYLES: Mapping[str, dict[str, Any]] = {
    "stock": {"color": BASELINE, "linestyle": "-", "marker": "o"},
    "stock-fused": {"color": BASELINE, "linestyle": "--", "marker": "s"},
    "stock-compiled": {"color": BASELINE, "linestyle": ":", "marker": "^"},
    "timm-legacy": {"color": TIMM, "linestyle": "-", "marker": "v"},
    "timm": {"color": TIMM, "linestyle": "--", "marker": "D"},
    "eager": {"color": CANDIDATE, "linestyle": "-", "marker": "o"},
    "fused": {"color": CANDIDATE, "linestyle": "--", "marker": "s"},
    "compiled": {"color": CANDIDATE, "linestyle": ":", "marker": "^"},
    BOUND: {"color": QUIET, "linestyle": "-.", "marker": "x"},
}


def draw_benchmark(benchmark: Benchmark, path: Path) -> Path:
    """Draws a column for each part, mode and precision, and in a sweep over sizes for each batch; returns the path.

    Without a sweep, a column shows the models' ratios. With one, it shows ratios and below them times, over the sizes
    or batches.
    """
    over = next(
        (name for name in ("size", "batch") if len({getattr(row.case, name) for row in benchmark.rows}) > 1), None
    )
    columns: dict[str, list[Row]] = {}
    for row in benchmark.rows:
        case = row.case
        fixed = {"size": f"{case.size} px", "batch": f"batch {case.batch}"}
        where = ", ".join([case.dtype, *(text for name, text in fixed.items() if name != over)])
        columns.setdefault(f"R{case.depth} {case.part}, {case.mode}\n{where}", []).append(row)
    with chart_style():
        figure = _sweep(columns, over) if over else _forests(columns)
        figure.savefig(path, dpi=DPI)
    return path


def _forests(columns: Mapping[str, Sequence[Row]]) -> Figure:
    """One column for each case, with the models one below the other."""
    names = [name for name in MODEL_NAMES if any(row.model == name for rows in columns.values() for row in rows)]
    figure = Figure(figsize=(1.5 + 4 * len(columns), 1.5 + 0.35 * len(names)), layout="constrained")
    for axes, (title, rows) in zip(_grid(figure, 1, len(columns))[0], columns.items(), strict=True):
        axes.axvline(1, color=INK, linewidth=1)
        for row in rows:
            place = names.index(row.model)
            style = {**STYLES[row.model], "linestyle": ""}
            if row.ratio.low is not None and row.ratio.high is not None:
                axes.plot([row.ratio.low, row.ratio.high], [place, place], color=style["color"], linewidth=2)
            axes.plot(row.ratio.value, place, markersize=7, **style)
        axes.set_title(title)
        axes.set_xlabel("time, stock = 1")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _sweep(columns: Mapping[str, Sequence[Row]], over: str) -> Figure:
    """Ratios, and below them times, over sizes or batches."""
    figure = Figure(figsize=(2.5 + 4 * len(columns), 8), layout="constrained")
    panels = _grid(figure, 2, len(columns))
    for upper, lower, (title, rows) in zip(*panels, columns.items(), strict=True):
        for name in [name for name in MODEL_NAMES if any(row.model == name for row in rows)]:
            own = [row for row in rows if row.model == name]
            x = [getattr(row.case, over) for row in own]
            style = {**STYLES[name], "markersize": 5}
            upper.plot(x, [row.ratio.value for row in own], **style, label=name)
            upper.fill_between(
                x,
                [row.ratio.value if row.ratio.low is None else row.ratio.low for row in own],
                [row.ratio.value if row.ratio.high is None else row.ratio.high for row in own],
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
            lower.plot(x, [row.cost for row in own], **style)
        upper.set_title(title)
        for axes in (upper, lower):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({getattr(row.case, over) for row in rows}), minor=False)
            axes.xaxis.set_major_formatter("{x:.0f}")
        lower.set_yscale("log", base=2)
        lower.yaxis.set_major_formatter("{x:g}")
        lower.set_xlabel("pixels" if over == "size" else "images a batch")
    panels[0][0].set_ylabel("time, stock = 1")
    panels[1][0].set_ylabel("time, stock in its first case = 1")
    # Training has fewer models than inference.
    handles = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=5, frameon=False)
    return figure


def _grid(figure: Figure, rows: int, columns: int) -> list[list[Axes]]:
    panels = figure.subplots(rows, columns, squeeze=False, sharey="row", sharex="col")
    for axes in panels.flat:
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return [list(row) for row in panels]
