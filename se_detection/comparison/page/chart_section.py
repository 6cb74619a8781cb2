"""The charts of a comparison, each with a table of its numbers."""

from collections.abc import Callable

from matplotlib.figure import Figure

from ...runs.evaluated_run import EvaluatedRun
from ...runs.metrics import read_training_curve
from ...visualization.inline_charts import chart_style, inline_svg
from ...visualization.page_blocks import Block, Cell, Chart, Charts, ModelHeading, Number, Table
from .. import comparison_plots
from ..details import Curve
from ..error_types import ERRORS
from ..result import ROLES, Comparison
from .score_section import INTERVAL_HEADING, common_reach, interval_cell

NUMBERS = "The numbers"


def chart_blocks(comparison: Comparison, runs: dict[str, list[EvaluatedRun]]) -> list[Block]:
    """Precision-recall, AP by IoU and size, errors, calibration and training; charts without data are skipped."""
    below = "Below: the difference, candidate − baseline" + (
        ", with 95\u00a0% intervals." if comparison.covers else "."
    )
    details = comparison.details
    charts = [
        _chart(
            "Precision and recall",
            lambda: comparison_plots.plot_precision_recall(comparison),
            "Mean precision of the classes at each recall, for two IoU thresholds.",
            _precision_table(details.precision_recall),
        ),
        _chart(
            "AP by IoU",
            lambda: comparison_plots.plot_ap_by_iou(comparison),
            f"A higher threshold requires more exact boxes. {below}",
            _curve_table("AP by IoU threshold", details.ap_by_iou, "IoU", "{:.2f}"),
        ),
        _chart(
            "AP by object size",
            lambda: comparison_plots.plot_ap_by_size(comparison),
            f"Each range holds the same number of objects. {below}",
            _curve_table("AP by the square root of an object's area, in pixels", details.ap_by_size, "up to", "{:.0f}"),
        ),
        _chart(
            "Error types",
            lambda: comparison_plots.plot_error_types(comparison),
            "The gain in AP@0.5 if one type of error were fixed (TIDE, Bolya et al. 2020).",
            _error_table(comparison),
        ),
        _chart(
            "Calibration",
            lambda: comparison_plots.plot_calibration(comparison),
            "Below the dotted line, a detector is overconfident. ECE, the expected calibration error, is the mean "
            "distance from the line.",
            _calibration_table(comparison),
        ),
        _training_chart(comparison, runs),
    ]
    drawn = [chart for chart in charts if chart is not None]
    return [Charts(drawn)] if drawn else []


def _chart(title: str, draw: Callable[[], Figure | None], caption: str, table: Table | None = None) -> Chart | None:
    with chart_style():
        figure = draw()
    if figure is None:
        return None
    return Chart(title, inline_svg(figure, title.lower().replace(" ", "-"), f"{title}. {caption}"), caption, table)


def _precision_table(curves: dict[str, Curve]) -> Table:
    recalls = next(iter(curves.values())).x
    rows: list[list[Cell]] = [
        [
            f"{recalls[place]:.0f}",
            *(Number(values[place]) for curve in curves.values() for values in (curve.baseline, curve.candidate)),
        ]
        for place in range(0, len(recalls), 10)
    ]
    headings: list[str | ModelHeading] = [
        "recall",
        *(ModelHeading(role, f"IoU {iou}") for iou in curves for role in ROLES),
    ]
    return Table("Precision at every tenth recall, in percent", headings, rows, summary=NUMBERS)


def _curve_table(caption: str, curve: Curve, heading: str, form: str) -> Table:
    differences = curve.difference or []
    reach = common_reach(differences)
    rows: list[list[Cell]] = [
        [form.format(x), Number(first), Number(second), interval_cell(item, reach)]
        for x, first, second, item in zip(curve.x, curve.baseline, curve.candidate, differences, strict=True)
    ]
    return Table(caption, [heading, *map(ModelHeading, ROLES), INTERVAL_HEADING], rows, summary=NUMBERS)


def _error_table(comparison: Comparison) -> Table:
    first, second = (comparison.details.error_types[role] for role in ROLES)
    rows: list[list[Cell]] = [
        [
            name.replace("_", " "),
            *(Number(types[name].dap) for types in (first, second)),
            *(Number(types[name].count, places=0) for types in (first, second)),
        ]
        for name in [*ERRORS, *(name for name in first if name not in ERRORS)]
    ]
    headings: list[str | ModelHeading] = [
        "error",
        *(ModelHeading(role, what) for what in ("gain", "number") for role in ROLES),
    ]
    return Table("Gain in AP@0.5, and number of errors", headings, rows, summary=NUMBERS)


def _calibration_table(comparison: Comparison) -> Table:
    known = [(role, item) for role, item in comparison.details.calibration.items() if item is not None]
    bins = range(len(known[0][1].count)) if known else range(0)
    rows: list[list[Cell]] = [
        [
            f"{place / len(bins):.1f}–{(place + 1) / len(bins):.1f}",
            *(Number(item.precision[place], places=3) for _, item in known),
            *(Number(item.count[place], places=0) for _, item in known),
        ]
        for place in bins
    ]
    headings: list[str | ModelHeading] = [
        "score",
        *(ModelHeading(role, what) for what in ("precision", "number") for role, _ in known),
    ]
    return Table("Precision at IoU 0.5, and number of detections, by score", headings, rows, summary=NUMBERS)


def _training_chart(comparison: Comparison, runs: dict[str, list[EvaluatedRun]]) -> Chart | None:
    curves = {role: [read_training_curve(run.path) for run in own] for role, own in runs.items()}
    caption = "Total loss, as detectron2 logs it: the median of 20 iterations."
    evaluations = {len(curve.ap) for own in curves.values() for curve in own}
    if max(evaluations) > 1:
        caption += " Below: AP at each evaluation."
    elif evaluations == {1}:
        caption += " AP was measured once, after the last iteration."
    return _chart("Training", lambda: comparison_plots.plot_training(comparison, curves), caption)
