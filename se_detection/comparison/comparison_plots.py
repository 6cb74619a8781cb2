"""Plots of a comparison, as PNG files or as charts of a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..runs.metrics import TrainingCurve
from ..visualization.inline_charts import BASELINE, CANDIDATE, GRID, INK, PAPER, QUIET, WIDTH, chart_style
from .details import Curve
from .error_types import ERRORS
from .intervals import Difference
from .result import ROLES, Comparison

# Lines and markers differ as well, for readers who can't distinguish the colours.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": BASELINE, "marker": "o", "linestyle": "-"},
    {"color": CANDIDATE, "marker": "s", "linestyle": "--"},
)
COLOURS = (BASELINE, CANDIDATE)
HATCHES = ("", "///")
DPI = 160
# The size of a page's charts, in inches.
INCHES = WIDTH / 72
HEIGHT = 5.0
# A longer name of a model would take the room of the curves.
NAME_LENGTH = 20
# The number of classes in a plot. With more, classes with intervals and large differences are shown.
CLASSES = 40


def draw_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Draws the plots that have data, and returns the paths of the PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in {"differences": plot_differences, "per_class": plot_per_class, **CHARTS}.items():
        with chart_style():
            figure = draw(comparison)
            if figure is not None:
                paths.append(folder / f"{name}.png")
                figure.savefig(paths[-1], dpi=DPI)
    return paths


def plot_differences(comparison: Comparison) -> Figure | None:
    """The metrics' differences with their intervals."""
    items = {name: comparison.difference[name] for name in comparison.runs["baseline"]}
    filled = {name for name, item in items.items() if item.excludes_zero}
    title = f"{_covers(comparison)}; filled: excludes zero"
    return _forest(items, filled, title, "difference in percentage points, candidate − baseline")


def plot_per_class(comparison: Comparison) -> Figure | None:
    """The classes' differences with their intervals, from the largest to the smallest."""
    known = {name: item for name, item in comparison.per_class.items() if item.difference.value is not None}
    names = sorted(known, key=lambda name: (known[name].p_adjusted is None, -abs(known[name].difference.value or 0)))
    names = sorted(names[:CLASSES], key=lambda name: -(known[name].difference.value or 0))
    label = "AP difference, candidate − baseline; each interval is for one class alone"
    if len(known) > CLASSES:
        label += f"\n({CLASSES} of {len(known)} classes)"
    title = f"{_covers(comparison)}; filled: significant, false discovery rate 5 %"
    filled = {name for name in names if known[name].significant}
    return _forest({name: known[name].difference for name in names}, filled, title, label)


def _covers(comparison: Comparison) -> str:
    return f"95 % intervals over {comparison.covers}" if comparison.covers else "no intervals"


def _forest(items: dict[str, Difference], filled: set[str], title: str, label: str) -> Figure | None:
    known = [(name, item) for name, item in items.items() if item.value is not None]
    if not known:
        return None
    figure = Figure(figsize=(7, 1.5 + 0.28 * len(known)), layout="constrained")
    axes = figure.subplots()
    _grid(axes)
    axes.axvline(0, color=INK, linewidth=1)
    for row, (name, item) in enumerate(known):
        value = item.value or 0.0
        colour = COLOURS[int(value > 0)] if name in filled else QUIET
        if item.low is not None and item.high is not None:
            axes.plot([item.low, item.high], [row, row], color=colour, linewidth=2)
        fill = "full" if name in filled else "none"
        axes.plot(value, row, color=colour, marker="o", markersize=6, fillstyle=fill)
    axes.set_yticks(range(len(known)), [name for name, _ in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.set_title(title)
    return figure


def plot_error_types(comparison: Comparison) -> Figure | None:
    """The gain in AP50 without each type of error."""
    figure, (axes,) = _panels(1)
    places = np.arange(len(ERRORS))
    for number, (role, types) in enumerate(comparison.details.error_types.items()):
        values = [types[name].dap for name in ERRORS]
        if not np.isfinite(values).all():
            return None
        bars = axes.barh(
            places + 0.4 * (number - 0.5),
            values,
            0.38,
            color=COLOURS[number],
            hatch=HATCHES[number],
            edgecolor=PAPER,
            label=_names(comparison)[role],
        )
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(places, ["classifi-\ncation", "localiz-\nation", *ERRORS[2:]])
    axes.set_ylim(len(ERRORS) - 0.5, -0.5)
    axes.set_xlabel("dAP50: gain if fixed")
    axes.margins(x=0.15)
    _legend(axes)
    return figure


def plot_precision_recall(comparison: Comparison) -> Figure | None:
    """Mean precision over classes against recall."""
    curves = comparison.details.precision_recall
    figure, panels = _panels(len(curves))
    for axes, (iou, curve) in zip(panels, curves.items(), strict=True):
        if not _lines(axes, comparison, curve, curve.x, markers=False):
            return None
        axes.set_title(f"IoU {iou}")
        axes.set_ylabel("precision (%)")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
    panels[-1].set_xlabel("recall (%)")
    _legend(panels[0])
    return figure


def plot_ap_by_iou(comparison: Comparison) -> Figure | None:
    """AP against the IoU threshold, and its difference."""
    curve = comparison.details.ap_by_iou
    figure = _with_difference(comparison, curve, curve.x, "IoU threshold")
    if figure is not None:
        figure.axes[-1].set_xticks(curve.x[::2], [f"{iou:.1f}" for iou in curve.x[::2]])
    return figure


def plot_ap_by_size(comparison: Comparison) -> Figure | None:
    """AP against the objects' size, and its difference."""
    curve = comparison.details.ap_by_size
    places = list(range(len(curve.x)))
    figure = _with_difference(comparison, curve, places, "√area of the object, up to (pixels)")
    if figure is not None:
        figure.axes[-1].set_xticks(places, [f"{high:.0f}" for high in curve.x])
    return figure


def _with_difference(comparison: Comparison, curve: Curve, places: Sequence[float], label: str) -> Figure | None:
    figure, (upper, lower) = _panels(2, (3, 2))
    if not places or not _lines(upper, comparison, curve, places):
        return None
    upper.set_ylabel("AP")
    upper.set_ylim(bottom=0)
    _legend(upper)
    lower.axhline(0, color=INK, linewidth=1)
    for place, item in zip(places, curve.difference or [], strict=True):
        if item.low is not None and item.high is not None:
            lower.plot([place, place], [item.low, item.high], color=QUIET, linewidth=2)
        if item.value is not None:
            lower.plot(place, item.value, color=QUIET, marker="o", markersize=5)
    lower.set_ylabel("difference")
    lower.set_xlabel(label)
    return figure


def plot_calibration(comparison: Comparison) -> Figure | None:
    """Precision against score, and below it the number of detections."""
    known = {role: item for role, item in comparison.details.calibration.items() if item is not None}
    if not known:
        return None
    figure, (upper, lower) = _panels(2, (3, 1))
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":", label="perfect")
    for number, (role, item) in enumerate(comparison.details.calibration.items()):
        if item is None:
            continue
        filled = [(s, p) for s, p in zip(item.score, item.precision, strict=True) if s is not None and p is not None]
        label = f"{_names(comparison)[role]}, ECE {item.ece:.3f}"
        upper.plot(*np.transpose(filled), label=label, markersize=5, **STYLES[number])
        edges = np.linspace(0, 1, len(item.count) + 1)
        lower.stairs(item.count, edges, color=COLOURS[number], linestyle=STYLES[number]["linestyle"], linewidth=1.5)
    upper.set_ylabel("precision at IoU 0.5")
    upper.set_ylim(0, 1)
    lower.set_yscale("log")
    counts = [count for item in known.values() for count in item.count if count]
    lower.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(counts) < 50 * min(counts) else (1.0,)))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.set_minor_formatter("")
    lower.set_ylabel("number")
    lower.set_xlabel("score (ten bins)")
    lower.set_xlim(0, 1)
    _legend(upper)
    return figure


CHARTS = {
    "error_types": plot_error_types,
    "precision_recall": plot_precision_recall,
    "ap_by_iou": plot_ap_by_iou,
    "ap_by_size": plot_ap_by_size,
    "calibration": plot_calibration,
}


def plot_training(comparison: Comparison, runs: dict[str, list[TrainingCurve]]) -> Figure | None:
    """Loss and AP over the iterations, a line for each run; AP only if a run was evaluated more than once.

    Args:
        runs: the training curves of the baseline and the candidate.
    """
    curves = [curve for own in runs.values() for curve in own]
    names = [name for name in ("loss", "ap") if any(len(curve[name]) > 1 for curve in curves)]
    if not names:
        return None
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for number, (role, own) in enumerate(runs.items()):
            for place, curve in enumerate(own):
                values = curve[name]
                style = STYLES[number] if name == "ap" else {**STYLES[number], "marker": ""}
                label = _names(comparison)[role] if place == 0 else None
                axes.plot(list(values), list(values.values()), label=label, markersize=5, **style)
        axes.set_ylabel({"loss": "total loss", "ap": "AP"}[name])
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("iteration")
    _legend(panels[0])
    return figure


def _panels(count: int, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above the other, on the same x axis."""
    figure = Figure(figsize=(INCHES, HEIGHT), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for axes in panels:
        _grid(axes)
    figure.align_ylabels()
    return figure, list(panels)


def _lines(axes: Axes, comparison: Comparison, curve: Curve, x: Sequence[float], *, markers: bool = True) -> bool:
    """Draws both curves; returns False if one has no values."""
    for number, (role, values) in enumerate(zip(ROLES, (curve.baseline, curve.candidate), strict=True)):
        if all(value is None for value in values):
            return False
        y = [np.nan if value is None else value for value in values]
        style = STYLES[number] if markers else {**STYLES[number], "marker": ""}
        axes.plot(x, y, label=_names(comparison)[role], markersize=5, **style)
    return True


def _names(comparison: Comparison) -> dict[str, str]:
    return {
        role: role if model.name == role else f"{role}: {_shortened(model.name)}"
        for role, model in comparison.models.items()
    }


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _grid(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes) -> None:
    """Adds a legend above the chart, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside upper left", frameon=False, handlelength=1.8, borderaxespad=0.2)
