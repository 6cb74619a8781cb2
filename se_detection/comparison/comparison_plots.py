"""Plots of a comparison, as PNG files or as charts of a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..errors import counted
from ..runs.metrics import TrainingCurve
from ..visualization.inline_charts import BASELINE, CANDIDATE, GRID, INK, PAPER, QUIET, WIDTH, chart_style
from .details import Curve
from .error_types import ERRORS
from .intervals import Difference
from .result import ROLES, Comparison

# Lines and markers differ as well, for readers who can't distinguish the colours.
STYLES: dict[str, dict[str, Any]] = {
    "baseline": {"color": BASELINE, "marker": "o", "linestyle": "-", "markersize": 5},
    "candidate": {"color": CANDIDATE, "marker": "s", "linestyle": "--", "markersize": 5},
}
COLOURS = (BASELINE, CANDIDATE)
HATCHES = ("", "///")
DPI = 160
# The size of a page's charts, in inches.
SIZE = WIDTH / 72, 5.0
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
        label += f"\n({CLASSES} of {counted(len(known), 'class', 'classes')})"
    title = f"{_covers(comparison)}; filled: significant, false discovery rate 5 %"
    filled = {name for name in names if known[name].significant}
    return _forest({name: known[name].difference for name in names}, filled, title, label)


def _covers(comparison: Comparison) -> str:
    return f"95 % intervals over {comparison.covers}" if comparison.covers else "no intervals"


def _forest(items: dict[str, Difference], filled: set[str], title: str, label: str) -> Figure | None:
    known = {name: (item.value, _ends(item)) for name, item in items.items() if item.value is not None}
    if not known:
        return None
    figure, (axes,) = _panels(1, size=(7, 1.5 + 0.28 * len(known)))
    axes.axvline(0, color=INK, linewidth=1)
    for row, (name, (value, ends)) in enumerate(known.items()):
        colour = COLOURS[value > 0] if name in filled else QUIET
        axes.plot(ends, [row, row], color=colour, linewidth=2)
        axes.plot(value, row, color=colour, marker="o", fillstyle="full" if name in filled else "none")
    axes.set(xlabel=label, title=title, ylim=(len(known) - 0.5, -0.5))
    axes.set_yticks(range(len(known)), list(known))
    return figure


def _ends(item: Difference) -> list[float]:
    """The ends of the interval; NaN, which is not drawn, without one."""
    return [np.nan if end is None else end for end in (item.low, item.high)]


def plot_error_types(comparison: Comparison) -> Figure | None:
    """The gain in AP50 without each type of error."""
    figure, (axes,) = _panels(1)
    places = np.arange(len(ERRORS))
    for number, (role, types) in enumerate(comparison.details.error_types.items()):
        values = [types[name].dap for name in ERRORS]
        if not np.isfinite(values).all():
            return None
        look: dict[str, Any] = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": PAPER}
        bars = axes.barh(places + 0.4 * (number - 0.5), values, 0.38, label=_label(comparison, role), **look)
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(places, ["classifi-\ncation", "localiz-\nation", *ERRORS[2:]])
    axes.set(xlabel="dAP50: gain if fixed", ylim=(len(ERRORS) - 0.5, -0.5))
    axes.margins(x=0.15)
    _legend(axes)
    return figure


def plot_precision_recall(comparison: Comparison) -> Figure | None:
    """Mean precision over classes against recall."""
    curves = comparison.details.precision_recall
    figure, panels = _panels(len(curves))
    for axes, (iou, curve) in zip(panels, curves.items(), strict=True):
        if not _lines(axes, comparison, curve, curve.x, marker=""):
            return None
        axes.set(title=f"IoU {iou}", ylabel="precision (%)", xlim=(0, 100), ylim=(0, 102))
    panels[-1].set_xlabel("recall (%)")
    _legend(panels[0])
    return figure


def plot_ap_by_iou(comparison: Comparison) -> Figure | None:
    """AP against the IoU threshold, and its difference."""
    curve = comparison.details.ap_by_iou
    ticks = curve.x[::2], [f"{iou:.1f}" for iou in curve.x[::2]]
    return _with_difference(comparison, curve, curve.x, "IoU threshold", ticks)


def plot_ap_by_size(comparison: Comparison) -> Figure | None:
    """AP against the objects' size, and its difference."""
    curve = comparison.details.ap_by_size
    places = [float(place) for place in range(len(curve.x))]
    ticks = places, [f"{high:.0f}" for high in curve.x]
    return _with_difference(comparison, curve, places, "√area of the object, up to (pixels)", ticks)


def _with_difference(
    comparison: Comparison, curve: Curve, places: list[float], label: str, ticks: tuple[list[float], list[str]]
) -> Figure | None:
    figure, (upper, lower) = _panels(2, (3, 2))
    if not places or not _lines(upper, comparison, curve, places):
        return None
    upper.set_ylabel("AP")
    upper.set_ylim(bottom=0)
    _legend(upper)
    lower.axhline(0, color=INK, linewidth=1)
    for place, item in zip(places, curve.difference or [], strict=True):
        lower.plot([place, place], _ends(item), color=QUIET, linewidth=2)
        lower.plot(place, np.nan if item.value is None else item.value, color=QUIET, marker="o", markersize=5)
    lower.set(ylabel="difference", xlabel=label)
    lower.set_xticks(*ticks)
    return figure


def plot_calibration(comparison: Comparison) -> Figure | None:
    """Precision against score, and below it the number of detections."""
    calibration = comparison.details.calibration
    counts = [count for item in calibration.values() if item for count in item.count if count]
    if not counts:
        return None
    figure, (upper, lower) = _panels(2, (3, 1))
    upper.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":", label="perfect")
    for role, item in calibration.items():
        if item:
            filled = np.array([item.score, item.precision], dtype=float)[:, np.array(item.count) > 0]
            label = f"{_label(comparison, role)}, ECE {item.ece:.3f}"
            upper.plot(*filled, label=label, **STYLES[role])
            edges = np.linspace(0, 1, len(item.count) + 1)
            look = {key: STYLES[role][key] for key in ("color", "linestyle")}
            lower.stairs(item.count, edges, linewidth=1.5, **look)
    upper.set(ylabel="precision at IoU 0.5", ylim=(0, 1))
    lower.set(yscale="log", ylabel="number", xlabel="score (ten bins)", xlim=(0, 1))
    lower.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(counts) < 50 * min(counts) else (1.0,)))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.set_minor_formatter("")
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
        for role, own in runs.items():
            style = STYLES[role] if name == "ap" else {**STYLES[role], "marker": ""}
            for number, curve in enumerate(own):
                # One entry in the legend for all runs.
                label = "" if number else _label(comparison, role)
                axes.plot(list(curve[name]), list(curve[name].values()), label=label, **style)
        axes.set_ylabel({"loss": "total loss", "ap": "AP"}[name])
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("iteration")
    _legend(panels[0])
    return figure


def _panels(
    count: int, ratios: Sequence[float] | None = None, size: tuple[float, float] = SIZE
) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above the other, on the same x axis."""
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0])
    for axes in panels:
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure, panels


def _lines(axes: Axes, comparison: Comparison, curve: Curve, x: list[float], **style: Any) -> bool:
    """Draws both curves; returns False if one has no values."""
    for role in ROLES:
        y = np.array(getattr(curve, role), dtype=float)
        if np.isnan(y).all():
            return False
        axes.plot(x, y, label=_label(comparison, role), **{**STYLES[role], **style})
    return True


def _label(comparison: Comparison, role: str) -> str:
    """A model's role and name, if it has one."""
    name = comparison.models[role].name
    short = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
    return role if name == role else f"{role}: {short}"


def _legend(axes: Axes) -> None:
    """Adds a legend above the chart, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside upper left", frameon=False, handlelength=1.8, borderaxespad=0.2)
