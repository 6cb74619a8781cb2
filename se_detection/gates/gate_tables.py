"""The analysis of a detector's gates as a table for the screen, JSON, and CSV for a spreadsheet."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..comparison.intervals import Difference
from ..files import write_json, write_whole
from .ablation import MARGIN, METRICS, SAMPLES, UNCHANGED, AblatedBlocks, Ablation
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


def excitations_table(analysis: Excitations, tablefmt: str = "simple") -> str:
    """A table with a row for each block: its gate and, if evaluated, AP without it; and notes below the table.

    Args:
        tablefmt: a format of tabulate, such as `simple` for the screen and `github` for Markdown.
    """
    headings = ["block", "mean gate", "spread %", "classes %", "saturated %"]
    gate_rows = [[name, *_gate_cells(block)] for name, block in analysis.statistics.items()]
    rows = gate_rows
    if analysis.ablation is not None:
        headings += ["AP", "change", "95 % interval", "AP50", "change", "params", "%", "time %"]
        ap, ap50 = (_plain(analysis.ablation.unchanged[name]) for name in METRICS)
        evaluated = {name: _ablation_cells(row) for name, row in analysis.ablation.rows().items()}
        rows = [[UNCHANGED, *[""] * 4, ap, "", "", ap50]]
        rows += [[*row, *evaluated.get(row[0], [])] for row in gate_rows]
        rows += [[name, *[""] * 4, *row] for name, row in evaluated.items() if name not in analysis.statistics]
    align = ["left"] + ["right"] * (len(headings) - 1)
    table = tabulate(rows, headings, tablefmt=tablefmt, disable_numparse=True, colalign=align)
    return "\n\n".join([table, *excitations_notes(analysis)])


def _gate_cells(block: BlockStatistics) -> list[str]:
    shares = [block.relative_spread, block.class_share, block.saturated]
    percents = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
    return [f"{block.mean[-1].mean():.3f}", *percents]


def _ablation_cells(row: AblatedBlocks) -> list[str]:
    ap, ap50 = (row.difference[name] for name in METRICS)
    figures = [_plain(row.metrics["AP"]), _number(ap.value), _interval(ap)]
    saved = [f"{row.parameters:,}", f"{100 * row.parameter_share:.2f}", f"{100 * row.time_share:.1f}"]
    return [*figures, _plain(row.metrics["AP50"]), _number(ap50.value), *saved]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+z.2f}"


def _interval(difference: Difference) -> str:
    return "–" if difference.low is None else f"{_number(difference.low)} to {_number(difference.high)}"


def _limits(block: BlockStatistics) -> tuple[float, float]:
    return float(block.low.mean()), float(block.high.mean())


def excitations_notes(analysis: Excitations) -> list[str]:
    """The meaning of the columns of :func:`excitations_table`, and the findings."""
    lists = findings(analysis)
    texts = {finding: _join(names, len(analysis.statistics)) for finding, names in lists.items()}
    notes = [
        f"{len(analysis.data.images)} images. Spread: over images, relative to the gate. Classes: share of the "
        "variance between images\nthat is explained by their classes (–: undefined). Saturated: gates within "
        f"{NEAR} of a limit.",
        f"Depend on the class ({100 * CLASS_DEPENDENT:.0f} % or more): {texts['tell_classes_apart']}.\n"
        f"Saturated ({100 * SATURATED:.0f} % or more): {texts['saturated']}.\n"
        f"Hardly vary between images (spread of {100 * NEARLY_CONSTANT:.0f} % or less): {texts['hardly_vary']}.",
    ]
    if analysis.ablation is not None:
        notes += _ablation_notes(analysis, analysis.ablation, lists["dispensable"])
    return notes


def _ablation_notes(analysis: Excitations, ablation: Ablation, dispensable: list[str]) -> list[str]:
    time = ablation.time
    noise = "; the machine was busy, so the times are rough" if time.jitter > NOISY else ""
    return [
        "AP when a block's gate is held at its mean, and the change with a 95 % interval over images; the parameters\n"
        "of its SE, and their share of all; and the share of the detector's time that computing the gate takes\n"
        f"({1000 * time.seconds_per_image:.0f} ms per image, {time.device}{noise}).\n"
        f"{FOLDED[analysis.run.cfg.MODEL.SE.POSITION]}.",
        _verdict(ablation, dispensable),
    ]


def _verdict(ablation: Ablation, dispensable: list[str]) -> str:
    if not dispensable:
        return f"No block is shown to be dispensable (at most {MARGIN} AP less without its SE)."
    listed = _join(dispensable, len(ablation.blocks))
    verdict = f"Dispensable, one at a time (at most {MARGIN} AP less without its SE): {listed}"
    together = ablation.all_blocks if len(dispensable) == len(ablation.blocks) else ablation.together
    if together is not None:
        change = together.difference["AP"]
        verdict += f";\nwithout all of them together, AP changes by {_number(change.value)} ({_interval(change)})"
    return f"{verdict}."


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _join(names: Sequence[str], total: int) -> str:
    return f"all {total} blocks" if len(names) == total > 1 else ", ".join(names) or "none"


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
                **dict(zip(("near_low", "near_high"), _limits(block), strict=True)),
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
            "time": asdict(ablation.time),
            "folding": FOLDED[analysis.run.cfg.MODEL.SE.POSITION],
        }
    return content


def write_excitations(analysis: Excitations) -> list[Path]:
    """Writes `excitations.json`, `blocks.csv`, `channels.csv` and `plots/`; returns their paths and that of the npz.

    `blocks.csv` has a row for each block and class, and for all images. `channels.csv` has a row for each block and
    channel, with mean and spread over all images and the mean of each class.
    """
    paths = [analysis.folder / name for name in TABLES]
    write_json(paths[0], to_dict(analysis), indent=2)
    _write_csv(paths[1], _block_rows(analysis))
    _write_csv(paths[2], _channel_rows(analysis))
    return [*paths, analysis.folder / STATISTICS, *draw_excitation_plots(analysis, analysis.folder / "plots")]


def _block_rows(analysis: Excitations) -> Iterable[Sequence[Any]]:
    yield ["block", "class", "images", "mean gate", "spread over images", "distance from the mean of all images"]
    for name, block in analysis.statistics.items():
        for row, label in enumerate([*analysis.data.classes, "all images"]):
            distance = math.sqrt(((block.mean[row] - block.mean[-1]) ** 2).mean())
            spread = math.sqrt((block.std[row] ** 2).mean())
            values = [block.mean[row].mean(), spread, distance] if block.images[row] else ["", "", ""]
            yield [name, label, int(block.images[row]), *map(_short, values)]


def _channel_rows(analysis: Excitations) -> Iterable[Sequence[Any]]:
    yield ["block", "channel", "mean", "spread", *analysis.data.classes]
    for name, block in analysis.statistics.items():
        means = np.where(block.images[:-1, None] > 0, block.mean[:-1], np.nan)
        for channel in range(block.mean.shape[1]):
            values = [block.mean[-1, channel], block.std[-1, channel], *means[:, channel]]
            yield [name, channel, *("" if np.isnan(value) else _short(value) for value in values)]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
