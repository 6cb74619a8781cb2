"""Plots of the gates: activation by channel and class as in the paper's Fig. 6 to 9, and an overview of all blocks."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import counted
from .ablation import AblatedBlocks
from .excitations import Excitations
from .recorder import LIMITS, stage_of
from .statistics import CLASS_DEPENDENT, NEARLY_CONSTANT, SATURATED, BlockStatistics

# Okabe and Ito's colours, safe for colour-blind readers; line styles and markers repeat the distinction.
CLASS_STYLES = (("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"))
ALL_IMAGES = "#222222"
DPI = 130
# Up to this many channels are plotted as a line, more as points.
LINES_UP_TO = 256
LOW, HIGH = "#0072B2", "#E69F00"


def shown_blocks(names: list[str]) -> list[str]:
    """The blocks shown in the paper: the last block of each stage, and all blocks of the last stage."""
    last = {stage_of(name): name for name in names}
    return [name for name in names if name in last.values() or stage_of(name) == stage_of(names[-1])]


def draw_excitation_plots(analysis: Excitations, folder: Path) -> list[Path]:
    """Draws `blocks.png`, unless all gates are constant, and `<block>.png` for each of :func:`shown_blocks`.

    Returns:
        The paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    overview = block_overview(analysis)
    figures = {} if overview is None else {"blocks": overview}
    # A class may be named `$1`.
    with rc_context({"text.parse_math": False}):
        figures |= {name: by_channel(analysis, name) for name in shown_blocks(list(analysis.statistics))}
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [folder / f"{name}.png" for name in figures]


def by_channel(analysis: Excitations, name: str) -> Figure:
    """Plots a block's gate by channel: the mean and spread over all images, and below it the deviations of classes."""
    block = analysis.statistics[name]
    channels = np.arange(block.mean.shape[1])
    points = len(channels) > LINES_UP_TO
    line = {"linewidth": 0.9, **({"linestyle": "none", "markersize": 1.6} if points else {})}
    figure = Figure(figsize=(10, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    mean, std = block.mean[-1], block.std[-1]
    band = np.clip([mean - std, mean + std], *LIMITS[type(analysis.gates[name].activation)])
    upper.fill_between(channels, *band, color="#bbbbbb", linewidth=0, label="spread over images")
    lower.fill_between(channels, -std, std, color="#dddddd", linewidth=0)
    lower.axhline(0, color=ALL_IMAGES, linewidth=1)
    shown = most_frequent(block)
    for index, (colour, linestyle, marker) in zip(shown, CLASS_STYLES, strict=False):
        style = {"color": colour, "linestyle": linestyle, "marker": marker if points else "", **line}
        upper.plot(
            channels, block.mean[index], label=f"{analysis.data.classes[index]} ({block.images[index]})", **style
        )
        lower.plot(channels, block.mean[index] - mean, **style)
    # On top of the classes, which often overlap; the lower plot shows their differences.
    label = f"all {counted(block.images[-1], 'image')}"
    upper.plot(channels, mean, label=label, color=ALL_IMAGES, marker="." if points else "", **line)
    known = int((block.images[:-1] > 0).sum())
    classes = f"; the {len(shown)} most frequent of {counted(known, 'class', 'classes')}" if known > len(shown) else ""
    upper.set_title(f"{name}, {counted(len(channels), 'channel')}{classes}", fontsize=11, loc="left")
    upper.set(ylabel="activation", xlim=(0, len(channels) - 1))
    lower.set(ylabel="class − all", xlabel="channel index")
    for axes in (upper, lower):
        _grid(axes)
    scale = 4 if points else 1
    upper.legend(frameon=False, fontsize=9, ncols=3, markerscale=scale, loc="lower left", bbox_to_anchor=(0, 1.06))
    return figure


def most_frequent(block: BlockStatistics) -> list[int]:
    """Indices of the four classes that occur in most images; classes without images are omitted."""
    order = np.argsort(-block.images[:-1], kind="stable")[: len(CLASS_STYLES)]
    return [int(index) for index in order if block.images[index]]


def block_overview(analysis: Excitations) -> Figure | None:
    """For each block: variance explained by classes, spread, saturation and, if evaluated, AP without it.

    A panel whose values are all zero or undefined is omitted; without any panel, there is no figure.
    """
    names, blocks = list(analysis.statistics), list(analysis.statistics.values())
    low, high = ([100 * getattr(block, side).mean() for block in blocks] for side in ("low", "high"))
    class_shares = [100 * (block.class_share or 0) for block in blocks]
    spreads = [100 * block.relative_spread for block in blocks]
    lower, upper = {"color": LOW, "label": "near the lower limit"}, {"color": HIGH, "label": "near the upper limit"}
    panels = [
        (
            "variance between images explained by their classes (%)",
            CLASS_DEPENDENT,
            [(class_shares, {"color": "#009E73"})],
        ),
        ("spread over images, relative to the gate (%)", NEARLY_CONSTANT, [(spreads, {"color": "#56B4E9"})]),
        ("saturated gates (%)", SATURATED, [(low, lower), (high, {**upper, "hatch": "///", "edgecolor": "white"})]),
    ]
    panels = [panel for panel in panels if np.any([values for values, _ in panel[2]])]
    changes = {names.index(name): row for name, row in analysis.ablation.blocks.items()} if analysis.ablation else {}
    changes = {place: row for place, row in changes.items() if row.difference["AP"].value is not None}
    count = len(panels) + bool(changes)
    if not count:
        return None
    figure = Figure(figsize=(max(7.0, 0.32 * len(names) + 2), 1.9 * count + 0.6), layout="constrained")
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    positions = np.arange(len(names))
    for panel, (title, threshold, stacked) in zip(axes, panels, strict=False):
        panel.axhline(100 * threshold, color=ALL_IMAGES, linewidth=1, linestyle=":")
        bottom = np.zeros(len(names))
        for values, style in stacked:
            panel.bar(positions, values, bottom=bottom, **style)
            bottom += values
        panel.set_ylim(0, 1.1 * max(100 * threshold, *bottom))
        panel.set_title(title, fontsize=10, loc="left")
        if len(stacked) > 1:
            panel.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98))
    if changes:
        _ap_changes(axes[-1], changes)
    for panel in axes:
        _grid(panel)
    axes[-1].set_xticks(positions, names, rotation=90 if len(names) > 10 else 0)
    return figure


def _ap_changes(axes: Axes, rows: dict[int, AblatedBlocks]) -> None:
    axes.axhline(0, color=ALL_IMAGES, linewidth=1)
    for position, row in rows.items():
        change = row.difference["AP"]
        if change.low is not None and change.high is not None:
            axes.plot([position, position], [change.low, change.high], color="#555555", linewidth=2)
        if change.value is not None:
            fill = "none" if row.dispensable else "full"
            axes.plot(position, change.value, color="#555555", marker="o", fillstyle=fill)
    axes.set_title("AP when the gate is held at its mean, 95 % interval (hollow: dispensable)", fontsize=10, loc="left")


def _grid(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
