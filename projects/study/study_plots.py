"""The figure of a study: every run, and the differences to the baseline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .definition import Study
from .study_differences import VariantResult

# Okabe and Ito's colours, for colour-blind readers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
METRIC = "AP"


def draw_study(study: Study, found: Sequence[VariantResult], path: Path) -> Path:
    """Plots AP of every run by data set, above the differences with their intervals; returns the path."""
    names = [name for name in (*study.data, "") if any(result.data == name for result in found)]
    figure = Figure(figsize=(2.8 * len(names) + 0.8, 6), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False, sharex=True)
    variants = list(study.variants)
    for column, name in enumerate(names):
        runs, changes = grid[:, column]
        for result in (result for result in found if result.data == name):
            number = variants.index(result.variant)
            _draw_runs(runs, number, result)
            _draw_difference(changes, number, result)
        runs.set_title(name)
        runs.set_visible(bool(name))
        changes.axhline(0, color=COLOURS[0], linewidth=1)
        changes.set_xticks(range(len(variants)), variants, rotation=30, ha="right")
        if not name:
            changes.set_title("all data sets")
        for axes in (runs, changes):
            axes.grid(axis="y", alpha=0.3)
    grid[0, 0].set_ylabel(f"{METRIC} of each run, and the mean")
    grid[1, 0].set_ylabel(f"difference in {METRIC} to {study.baseline}\n(simultaneous 95 % intervals)")
    figure.savefig(path, dpi=110)
    return path


def _draw_runs(axes: Axes, number: int, result: VariantResult) -> None:
    values = np.array([run[METRIC] for run in result.runs], dtype=float)
    if len(values):
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(number + np.linspace(-0.15, 0.15, len(values)), values, color=colour, s=18, zorder=3)
        axes.hlines(np.mean(values), number - 0.3, number + 0.3, color=colour)


def _draw_difference(axes: Axes, number: int, result: VariantResult) -> None:
    change = result.differences.get(METRIC)
    if change is not None and change.value is not None:
        reach = None if change.low is None else [[change.value - change.low], [(change.high or 0) - change.value]]
        axes.errorbar([number], [change.value], reach, fmt="o", color=COLOURS[number % len(COLOURS)], capsize=4)
