"""The analysis of a detector's gates as a table for the screen, JSON, and CSV for a spreadsheet."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..comparison.intervals import Difference
from ..errors import counted
from ..files import write_json, write_whole
from .ablation import ALL, MARGIN, METRICS, SAMPLES, TOGETHER, UNCHANGED, AblatedBlocks
from .excitations import STATISTICS, TABLES, Excitations
from .gate_plots import draw_excitation_plots
from .recorder import NEAR
from .statistics import CLASS_DEPENDENT, NEARLY_CONSTANT, SATURATED, BlockStatistics

# On an idle machine, the jitter is smaller.
NOISY = 0.2
# How a constant gate can be removed, by position of the SE block.
FOLDED = {
    "standard": "A constant gate can be folded into the norm before it, which removes the SE block",
    "3x3": "A constant gate can be folded into the norm before it, which removes the SE block",
    "pre": "A constant gate can be folded into the convolution after it, which removes the SE block",
    "identity": "A constant gate leaves a factor for each channel on the shortcut",
    "post": "A constant gate leaves a factor for each channel",
}
MEASURES = {
    "class_share": "share of the variance between images, over all channels of a gate, that is explained by the "
    "classes in an image (adjusted R² of a linear regression on the presence of classes; null: undefined)",
    "saturated": f"share of the gates within {NEAR} of a limit of the gate's range",
    "relative_spread": "standard deviation over images divided by the gate, both as root mean squares over channels",
}


def findings(analysis: Excitations) -> dict[str, list[str]]:
    """The blocks whose gates depend on the class, are saturated, hardly vary, and, if evaluated, are dispensable."""
    blocks = analysis.statistics
    by_class = sorted(blocks, key=lambda name: -(blocks[name].class_share or 0))
    lists = {
        "tell_classes_apart": [name for name in by_class if (blocks[name].class_share or 0) >= CLASS_DEPENDENT],
        "saturated": [name for name, block in blocks.items() if block.saturated >= SATURATED],
        "hardly_vary": [name for name, block in blocks.items() if block.relative_spread <= NEARLY_CONSTANT],
    }
    if analysis.ablation is not None:
        lists["dispensable"] = [name for name, row in analysis.ablation.blocks.items() if row.dispensable]
    return lists


def excitations_table(analysis: Excitations) -> str:
    """A table with a row for each block: its gate and, if evaluated, AP without it; and notes below the table."""
    headings = ["block", "mean gate", "spread %", "classes %", "saturated %"]
    rows = [[name, *_gate_cells(block)] for name, block in analysis.statistics.items()]
    if (ablation := analysis.ablation) is not None:
        headings += ["AP", "change", "95 % interval", "AP50", "change", "params", "%", "time %"]
        ap, ap50 = (_plain(ablation.unchanged[name]) for name in METRICS)
        unchanged = [UNCHANGED, *[""] * 4, ap, "", "", ap50]
        evaluated = {name: _ablation_cells(row) for name, row in ablation.rows().items()}
        joint = [[name, *[""] * 4, *evaluated[name]] for name in ablation.joint]
        rows = [[*row, *evaluated.get(row[0], [])] for row in rows]
        rows = [unchanged, *rows, *joint]
    align = ["left"] + ["right"] * (len(headings) - 1)
    table = tabulate(rows, headings, disable_numparse=True, colalign=align)
    return "\n\n".join([table, *excitations_notes(analysis)])


def _gate_cells(block: BlockStatistics) -> list[str]:
    shares = [block.relative_spread, block.class_share, block.saturated]
    percents = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
    return [f"{block.mean[-1].mean():.3f}", *percents]


def _ablation_cells(row: AblatedBlocks) -> list[str]:
    ap, ap50 = (row.difference[name] for name in METRICS)
    figures = [_plain(row.metrics["AP"]), _signed(ap.value), _interval(ap), _plain(row.metrics["AP50"])]
    saved = [f"{row.parameters:,}", f"{100 * row.parameter_share:.2f}", f"{100 * row.time_share:.1f}"]
    return [*figures, _signed(ap50.value), *saved]


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    # Adding 0 turns -0.0 into 0.0.
    return "–" if value is None else f"{round(float(value), 2) + 0.0:+.2f}"


def _interval(difference: Difference) -> str:
    return "–" if difference.low is None else f"{_signed(difference.low)} to {_signed(difference.high)}"


def excitations_notes(analysis: Excitations) -> list[str]:
    """The meaning of the columns of :func:`excitations_table`, and the findings."""
    lists = findings(analysis)
    texts = {finding: _join(names, len(analysis.statistics)) for finding, names in lists.items()}
    notes = [
        f"{counted(len(analysis.data.images), 'image')}. Spread: over images, relative to the gate. Classes: share of "
        "the variance between images\nthat is explained by their classes (–: undefined). Saturated: gates within "
        f"{NEAR} of a limit.",
        f"Depend on the class ({100 * CLASS_DEPENDENT:.0f} % or more): {texts['tell_classes_apart']}.\n"
        f"Saturated ({100 * SATURATED:.0f} % or more): {texts['saturated']}.\n"
        f"Hardly vary between images (spread of {100 * NEARLY_CONSTANT:.0f} % or less): {texts['hardly_vary']}.",
    ]
    if (ablation := analysis.ablation) is not None:
        time = ablation.time
        noise = "; the machine was busy, so the times are rough" if time["jitter"] > NOISY else ""
        notes.append(
            "AP when a block's gate is held at its mean, and the change with a 95 % interval over images; the\n"
            "parameters of its SE, and their share of all; and the share of the detector's time that computing the\n"
            f"gate takes ({1000 * time['seconds_per_image']:.0f} ms per image, {time['device']}{noise}).\n"
            f"{FOLDED[analysis.run.cfg.MODEL.SE.POSITION]}."
        )
        if not lists["dispensable"]:
            notes.append(f"No block is shown to be dispensable (at most {MARGIN} AP less without its SE).")
        else:
            verdict = f"Dispensable, one at a time (at most {MARGIN} AP less without its SE): {texts['dispensable']}"
            joint = ablation.joint.get(ALL if len(lists["dispensable"]) == len(ablation.blocks) else TOGETHER)
            if joint is not None:
                change = joint.difference["AP"]
                verdict += (
                    f";\nwithout all of them together, AP changes by {_signed(change.value)} ({_interval(change)})"
                )
            notes.append(f"{verdict}.")
    return notes


def _join(names: Sequence[str], total: int) -> str:
    return f"all {counted(total, 'block')}" if len(names) == total > 1 else ", ".join(names) or "none"


def to_dict(analysis: Excitations) -> dict[str, Any]:
    """The content of `excitations.json`; AP in percent, shares from 0 to 1, null if undefined."""
    first = next(iter(analysis.statistics.values()))
    content: dict[str, Any] = {
        "run": str(analysis.run.folder.absolute()),
        "weights": str(analysis.run.weights.absolute()),
        "annotations": str(analysis.data.annotations),
        "image_root": str(analysis.data.image_root),
        "images": len(analysis.data.images),
        "images_with": dict(zip(analysis.data.classes, first.images[:-1].tolist(), strict=True)),
        "measures": MEASURES,
        "blocks": {
            name: {
                "channels": block.mean.shape[1],
                "mean": float(block.mean[-1].mean()),
                "relative_spread": block.relative_spread,
                "class_share": block.class_share,
                "near_low": float(block.low.mean()),
                "near_high": float(block.high.mean()),
            }
            for name, block in analysis.statistics.items()
        },
        "findings": findings(analysis),
        "ablation": None,
    }
    if (ablation := analysis.ablation) is not None:
        content["ablation"] = {
            "unchanged": ablation.unchanged,
            "rows": {name: {**asdict(row), "dispensable": row.dispensable} for name, row in ablation.rows().items()},
            "dispensable_if": f"the 95 % interval of the difference in AP begins at -{MARGIN} or above",
            "bootstrap_samples": SAMPLES,
            "time": ablation.time,
            "folding": FOLDED[analysis.run.cfg.MODEL.SE.POSITION],
        }
    return content


def write_excitations(analysis: Excitations) -> list[Path]:
    """Writes JSON, CSV and plots into the analysis's folder; returns all files of the analysis.

    `blocks.csv` has a row for each block and class, with the mean gate and its spread over images. `channels.csv` has a
    row for each channel, with mean and spread over all images and the mean of each class.
    """
    paths = [analysis.folder / name for name in TABLES]
    write_json(paths[0], to_dict(analysis), indent=2)
    _write_csv(paths[1], _block_rows(analysis))
    _write_csv(paths[2], _channel_rows(analysis))
    return [*paths, analysis.folder / STATISTICS, *draw_excitation_plots(analysis, analysis.folder / "plots")]


def _block_rows(analysis: Excitations) -> Iterable[Sequence[Any]]:
    yield ["block", "class", "images", "mean gate", "spread over images", "distance from the mean of all images"]
    for name, block in analysis.statistics.items():
        distance = np.sqrt(((block.mean - block.mean[-1]) ** 2).mean(axis=1))
        spread = np.sqrt((block.std**2).mean(axis=1))
        values = np.stack([block.mean.mean(axis=1), spread, distance], axis=1)
        for label, images, row in zip([*analysis.data.classes, "all images"], block.images, values, strict=True):
            yield [name, label, int(images), *(f"{value:.6g}" if images else "" for value in row)]


def _channel_rows(analysis: Excitations) -> Iterable[Sequence[Any]]:
    yield ["block", "channel", "mean", "spread", *analysis.data.classes]
    for name, block in analysis.statistics.items():
        for channel, means in enumerate(block.mean.T):
            classes = [f"{mean:.6g}" if images else "" for mean, images in zip(means, block.images[:-1], strict=False)]
            yield [name, channel, f"{means[-1]:.6g}", f"{block.std[-1, channel]:.6g}", *classes]


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
