"""Plots a benchmark: ratios with intervals, and times over a sweep of sizes or batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from se_detection.visualization.inline_charts import BASELINE, CANDIDATE, GRID, INK, QUIET, chart_style

from .timed_models import BOUND, MODEL_NAMES

Row = Mapping[str, Any]

DPI = 160
TIMM, ONNX, OPENVINO = "#009E73", "#CC79A7", "#E69F00"
# Colour, line and marker. The colour shows the network, the line how it is run.
STYLES = {
    "stock": (BASELINE, "-", "o"),
    "stock-fused": (BASELINE, "--", "s"),
    "stock-compiled": (BASELINE, ":", "^"),
    "timm-legacy": (TIMM, "-", "v"),
    "timm": (TIMM, "--", "D"),
    "eager": (CANDIDATE, "-", "o"),
    "fused": (CANDIDATE, "--", "s"),
    "compiled": (CANDIDATE, ":", "^"),
    BOUND: (QUIET, "-.", "x"),
    "onnxruntime": (ONNX, "-", "o"),
    "onnxruntime-fused": (ONNX, "--", "s"),
    "onnxruntime-int8": (ONNX, ":", "^"),
    "openvino": (OPENVINO, "--", "s"),
    "openvino-bf16": (OPENVINO, "-.", "D"),
    "openvino-int8": (OPENVINO, ":", "^"),
}


def draw_benchmark(rows: Sequence[Row], path: Path) -> Path:
    """Draws a column for each part, mode and precision, and in a sweep over sizes for each batch; returns the path.

    Without a sweep, a column shows the models' ratios. With one, it shows ratios and below them times, over the sizes
    or batches.

    Args:
        rows: see :func:`rows_of`.
        path: the PNG file.
    """
    over = next((name for name in ("size", "batch") if len({row[name] for row in rows}) > 1), None)
    columns: dict[str, list[Row]] = {}
    for row in rows:
        fixed = {"size": f"{row['size']} px", "batch": f"batch {row['batch']}"}
        where = ", ".join([row["dtype"], *(text for name, text in fixed.items() if name != over)])
        columns.setdefault(f"R{row['depth']} {row['part']}, {row['mode']}\n{where}", []).append(row)
    with chart_style():
        figure = _sweep(columns, over) if over else _forests(columns)
        figure.savefig(path, dpi=DPI)
    return path


def _forests(columns: Mapping[str, Sequence[Row]]) -> Figure:
    """One column for each case, with the models one below the other."""
    names = _models([row for rows in columns.values() for row in rows])
    figure = Figure(figsize=(1.5 + 4 * len(columns), 1.5 + 0.35 * len(names)), layout="constrained")
    for axes, (title, rows) in zip(_grid(figure, 1, len(columns))[0], columns.items(), strict=True):
        axes.axvline(1, color=INK, linewidth=1)
        for row in rows:
            place = names.index(row["arm"])
            colour, _, marker = STYLES[row["arm"]]
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(row["ratio"], place, color=colour, marker=marker, markersize=7)
        axes.set(title=title, xlabel="time, stock = 1", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
    return figure


def _sweep(columns: Mapping[str, Sequence[Row]], over: str) -> Figure:
    """Ratios, and below them times, over sizes or batches."""
    figure = Figure(figsize=(2.5 + 4 * len(columns), 8), layout="constrained")
    panels = _grid(figure, 2, len(columns))
    for upper, lower, (title, rows) in zip(*panels, columns.items(), strict=True):
        for name in _models(rows):
            own = [row for row in rows if row["arm"] == name]
            x = [row[over] for row in own]
            style = dict(zip(("color", "linestyle", "marker"), STYLES[name], strict=True))
            upper.plot(x, [row["ratio"] for row in own], **style, markersize=5, label=name)
            ends = ([row["ratio"] if row[end] is None else row[end] for row in own] for end in ("low", "high"))
            upper.fill_between(x, *ends, color=style["color"], alpha=0.15, linewidth=0)
            lower.plot(x, [row["cost"] for row in own], **style, markersize=5)
        upper.set_title(title)
        for axes in (upper, lower):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({row[over] for row in rows}), minor=False)
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


def _models(rows: Sequence[Row]) -> list[str]:
    present = {row["arm"] for row in rows}
    return [name for name in MODEL_NAMES if name in present]


def _grid(figure: Figure, rows: int, columns: int) -> list[list[Axes]]:
    panels = figure.subplots(rows, columns, squeeze=False, sharey="row", sharex="col")
    for axes in panels.flat:
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return [list(row) for row in panels]
