"""Plots of all runs of a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .run_records import BACKBONE, Records

# Okabe and Ito's colours, for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_curves(records: Records, path: Path) -> Path:
    """Plots final AP, losses, AP during training, and the backbones' top-1; returns the path."""
    kept = {name: list(runs.values()) for name, runs in records.items() if runs}
    figure = Figure(figsize=(11, 8), layout="constrained")
    final, loss, during, top1 = figure.subplots(2, 2).flat
    seen: set[tuple[str, int]] = set()
    for number, (name, runs) in enumerate(kept.items()):
        colour = {"color": COLOURS[number % len(COLOURS)]}
        marked = {**colour, "marker": MARKERS[number % len(MARKERS)]}
        values = np.array([run["AP"] for run in runs], dtype=float)
        places = number + np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [number]
        final.scatter(places, values, **marked, zorder=3)
        final.hlines(np.mean(values), number - 0.25, number + 0.25, **colour)
        _plot(loss, [run["curve"]["loss"] for run in runs], name, **colour, linewidth=0.9)
        line = {**marked, "markersize": 4, "linewidth": 1}
        _plot(during, [run["curve"]["evaluations"] for run in runs], name, **line)
        # Several variants may start from the same backbones.
        backbones = {(run[BACKBONE]["arm"], run["seed"]): run[BACKBONE]["curve"]["evaluations"] for run in runs}
        variant = runs[0][BACKBONE]["arm"]
        shown = None if any(variant == other for other, _ in seen) else variant
        _plot(top1, [curve for key, curve in backbones.items() if key not in seen], shown, **line)
        seen |= set(backbones)
    final.set_xticks(range(len(kept)), list(kept), rotation=12)
    for axes, title, x, y in (
        (final, "AP of every run, and the mean", "", "AP"),
        (loss, "Training loss of the detectors", "iteration", "total loss"),
        (during, "AP during training", "iteration", "AP"),
        (top1, "Top-1 of the backbones' classifiers", "pre-training iteration", "top-1 (%)"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        if axes is not final:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path


def _plot(axes: Axes, curves: Sequence[list[list[float]]], label: str | None, **style: Any) -> None:
    """Plots (iteration, value) pairs, with one label for all curves."""
    for place, curve in enumerate(curves):
        axes.plot(*zip(*curve, strict=True), **style, label=None if place else label)
