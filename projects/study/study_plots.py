"""Plots of all runs of a study."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .run_records import BACKBONE

Records = Mapping[str, Mapping[int, Mapping[str, Any]]]

# Okabe and Ito's colours, for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_curves(records: Records, path: Path) -> Path:
    """Plots final AP, losses, AP during training, and the backbones' top-1; returns the path."""
    kept = {name: list(runs.values()) for name, runs in records.items() if runs}
    figure = Figure(figsize=(11, 8), layout="constrained")
    final, loss, during, top1 = figure.subplots(2, 2).flat
    _final(final, kept)
    seen: set[tuple[str, int]] = set()
    for number, (name, runs) in enumerate(kept.items()):
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
        marked = {**style, "marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1}
        for place, run in enumerate(runs):
            label = name if place == 0 else None
            loss.plot(*_columns(run["curve"]["loss"]), **style, linewidth=0.9, label=label)
            during.plot(*_columns(run["curve"]["evaluations"]), **marked, label=label)
            backbone = (run[BACKBONE]["arm"], run["seed"])
            if backbone not in seen:
                shown = backbone[0] if not any(backbone[0] == other for other, _ in seen) else None
                seen.add(backbone)
                top1.plot(*_columns(run[BACKBONE]["curve"]["evaluations"]), **marked, label=shown)
    for axes, title, x, y in (
        (loss, "Training loss of the detectors", "iteration", "total loss"),
        (during, "AP during training", "iteration", "AP"),
        (top1, "Top-1 of the backbones' classifiers", "pre-training iteration", "top-1 (%)"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return path


def _final(axes: Axes, kept: Mapping[str, list[Mapping[str, Any]]]) -> None:
    for number, (name, runs) in enumerate(kept.items()):
        values = np.array([run["AP"] for run in runs], dtype=float)
        colour = COLOURS[number % len(COLOURS)]
        places = number + np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [number]
        axes.scatter(places, values, color=colour, marker=MARKERS[number % len(MARKERS)], zorder=3, label=name)
        axes.hlines(np.mean(values), number - 0.25, number + 0.25, color=colour)
    axes.set_xticks(range(len(kept)), list(kept), rotation=12)
    axes.set(title="AP of every run, and the mean", ylabel="AP")
    axes.grid(axis="y", alpha=0.3)


def _columns(points: list[list[float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
