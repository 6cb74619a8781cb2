"""A comparison in pictures: one PNG for each thing that a table shows badly."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import Comparison
from .details import Curve
from .error_types import ERRORS
from .intervals import Difference

# Okabe and Ito's colours, which colour-blind people tell apart; line and marker say the same again.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
)
COLOURS = tuple(style["color"] for style in STYLES)
HATCHES = ("", "///")
DPI = 130
# So many classes fit one picture; of more, those with the largest differences, and intervals first.
CLASSES = 40


def draw_plots(comparison: Comparison, folder: Path) -> list[Path]:
    """Draws what there is something to draw of, and returns the paths of the PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for draw in (differences, per_class, error_types, precision_recall, ap_by_iou, ap_by_size, calibration):
        figure = draw(comparison)
        if figure is None:
            continue
        path = folder / f"{draw.__name__}.png"
        figure.savefig(path, dpi=DPI)
        paths.append(path)
    return paths


def differences(comparison: Comparison) -> Figure | None:
    """The metrics' differences with their intervals."""
    items = {name: comparison.difference[name] for name in comparison.runs["baseline"]}
    told = {
        name
        for name, item in items.items()
        if item.low is not None and item.high is not None and not item.low <= 0 <= item.high
    }
    title = f"{_covers(comparison)}; filled: zero is outside"
    return _forest(items, told, title, "difference in percentage points, candidate − baseline")


def per_class(comparison: Comparison) -> Figure | None:
    """The classes' differences with their intervals, from the largest to the smallest."""
    known = {name: item for name, item in comparison.per_class.items() if item.difference.value is not None}
    names = sorted(known, key=lambda name: (known[name].p_adjusted is None, -abs(known[name].difference.value or 0)))
    names = sorted(names[:CLASSES], key=lambda name: -(known[name].difference.value or 0))
    label = "AP difference, candidate − baseline; each interval is for its class alone"
    if len(known) > CLASSES:
        label += f"\n({CLASSES} of {len(known)} classes)"
    title = f"{_covers(comparison)}; filled: differs, false discovery rate 5 %"
    told = {name for name in names if known[name].told}
    return _forest({name: known[name].difference for name in names}, told, title, label)


def _covers(comparison: Comparison) -> str:
    return f"95 % intervals over {comparison.covers}" if comparison.covers else "no intervals"


def _forest(items: dict[str, Difference], told: set[str], title: str, label: str) -> Figure | None:
    known = [(name, item) for name, item in items.items() if item.value is not None]
    if not known:
        return None
    figure, axes = _figure(7, 1.5 + 0.28 * len(known))
    axes.axvline(0, color="black", linewidth=1)
    for row, (name, item) in enumerate(known):
        value = item.value or 0.0
        colour = COLOURS[int(value > 0)] if name in told else "#777777"
        if item.low is not None and item.high is not None:
            axes.plot([item.low, item.high], [row, row], color=colour, linewidth=2)
        axes.plot(value, row, color=colour, marker="o", markersize=6, fillstyle="full" if name in told else "none")
    axes.set_yticks(range(len(known)), [name for name, _ in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    return figure


def error_types(comparison: Comparison) -> Figure | None:
    """What AP50 would gain without each kind of error."""
    figure, axes = _figure(8, 4)
    places = np.arange(len(ERRORS))
    for number, (arm, types) in enumerate(comparison.details.error_types.items()):
        values = [types[name].dap for name in ERRORS]
        if not np.isfinite(values).all():
            return None
        bars = axes.bar(
            places + 0.4 * (number - 0.5),
            values,
            0.38,
            color=COLOURS[number],
            hatch=HATCHES[number],
            edgecolor="white",
            label=_names(comparison)[arm],
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_xticks(places, ERRORS)
    axes.set_ylabel("dAP50: gain if mended")
    axes.margins(y=0.15)
    _legend(axes)
    return figure


def precision_recall(comparison: Comparison) -> Figure | None:
    """Mean precision over classes against recall."""
    curves = comparison.details.precision_recall
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (iou, curve) in zip(panels, curves.items(), strict=True):
        if not _lines(axes, comparison, curve, curve.x, markers=False):
            return None
        axes.set_title(f"IoU {iou}", fontsize=10)
        axes.set_xlabel("recall (%)")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        _grid(axes)
    panels[0].set_ylabel("precision (%), mean of classes")
    _legend(panels[0])
    return figure


def ap_by_iou(comparison: Comparison) -> Figure | None:
    """AP against the IoU threshold, and its difference."""
    curve = comparison.details.ap_by_iou
    return _with_difference(comparison, curve, [f"{iou:.2f}" for iou in curve.x], "IoU threshold")


def ap_by_size(comparison: Comparison) -> Figure | None:
    """AP against the objects' size, and its difference."""
    curve = comparison.details.ap_by_size
    labels = [f"≤ {high:.0f}" for high in curve.x[:1]] + [f"{low:.0f}–{high:.0f}" for low, high in pairwise(curve.x)]
    return _with_difference(comparison, curve, labels, "√area of the object (pixels); as many objects in each range")


def _with_difference(comparison: Comparison, curve: Curve, labels: list[str], label: str) -> Figure | None:
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    places = np.arange(len(labels), dtype=float)
    if not labels or not _lines(upper, comparison, curve, list(places)):
        return None
    upper.set_ylabel("AP")
    upper.set_ylim(bottom=0)
    _legend(upper)
    lower.axhline(0, color="black", linewidth=1)
    for place, item in zip(places, curve.difference or [], strict=True):
        if item.low is not None and item.high is not None:
            lower.plot([place, place], [item.low, item.high], color="#555555", linewidth=2)
        if item.value is not None:
            lower.plot(place, item.value, color="#555555", marker="o")
    lower.set_ylabel("difference,\n95 % interval" if comparison.covers else "difference")
    lower.set_xticks(places, labels)
    lower.set_xlabel(label)
    for axes in (upper, lower):
        _grid(axes)
    return figure


def calibration(comparison: Comparison) -> Figure | None:
    """Precision against score, over the number of detections."""
    known = {arm: item for arm, item in comparison.details.calibration.items() if item is not None}
    if not known:
        return None
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle=":", label="perfect")
    for number, (arm, item) in enumerate(comparison.details.calibration.items()):
        if item is None:
            continue
        filled = [(s, p) for s, p in zip(item.score, item.precision, strict=True) if s is not None and p is not None]
        label = f"{_names(comparison)[arm]}, ECE {item.ece:.3f}"
        upper.plot(*np.transpose(filled), label=label, markersize=5, **STYLES[number])
        edges = np.linspace(0, 1, len(item.count) + 1)
        lower.stairs(item.count, edges, color=COLOURS[number], linestyle=STYLES[number]["linestyle"], linewidth=1.5)
    upper.set_ylabel("precision at IoU 0.5")
    upper.set_ylim(0, 1)
    lower.set_yscale("log")
    lower.set_ylabel("detections")
    lower.set_xlabel("score (ten bins)")
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        _grid(axes)
    _legend(upper)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _grid(axes)
    return figure, axes


def _lines(axes: Axes, comparison: Comparison, curve: Curve, x: list[float], *, markers: bool = True) -> bool:
    """Both arms' curves; whether there is anything to draw."""
    for number, (arm, values) in enumerate((("baseline", curve.baseline), ("candidate", curve.candidate))):
        if all(value is None for value in values):
            return False
        y = [np.nan if value is None else value for value in values]
        style = STYLES[number] if markers else {**STYLES[number], "marker": ""}
        axes.plot(x, y, label=_names(comparison)[arm], markersize=5, **style)
    return True


def _names(comparison: Comparison) -> dict[str, str]:
    return {
        role: role if arm.name == role else f"{role}: {arm.name}"
        for role, arm in zip(("baseline", "candidate"), comparison.arms, strict=True)
    }


def _grid(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9)
