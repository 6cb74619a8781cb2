"""The metrics of a comparison."""

from ...visualization.page_blocks import ArmHeading, Block, Cell, KeyFigure, KeyFigures, Number, Scale, Table, Text
from ..compare import SIDES
from ..comparison import Comparison
from ..comparison_plots import excludes_zero
from ..tables import COLUMNS, RECALLS
from .interval_cells import HEADING, interval_cell, reach_of

COSTS = ("parameters", "gflops")
# AP before AP50, as everybody names it first.
METRICS = {"AP": "AP", **{key: heading for key, (heading, _, _) in (COLUMNS | RECALLS).items() if key not in COSTS}}
HEADINGS = {key: heading for key, (heading, _, _) in COLUMNS.items()} | {"parameters": "Parameters (M)"}


def lead_blocks(comparison: Comparison) -> list[Block]:
    """The difference in AP, drawn, and the figures that are read first."""
    blocks: list[Block] = []
    ap = comparison.difference["AP"]
    if ap.low is not None:
        interval = interval_cell(ap, reach_of([ap]), told=excludes_zero(ap))
        label = "Difference in AP, with its 95\u00a0% interval; the upright line is no difference."
        blocks.append(Scale(interval, "baseline better", "candidate better", label))
    figures = []
    for key in ("AP", "AP50", *COSTS):
        _, unit, places = COLUMNS[key]
        values = [getattr(comparison, arm).get(key) for arm in SIDES]
        if values != [None, None]:
            numbers = [Number(value, unit, places, arm=arm) for arm, value in zip(SIDES, values, strict=True)]
            difference = Number(comparison.difference[key].value, unit, places, signed=True)
            figures.append(KeyFigure(HEADINGS[key], numbers, difference))
    return [*blocks, KeyFigures(figures)] if figures else blocks


def score_blocks(comparison: Comparison) -> list[Block]:
    """All metrics with their intervals and, of several runs, each run's."""
    items = {key: comparison.difference[key] for key in METRICS}
    reach = reach_of(items.values())
    rows: list[list[Cell]] = [
        [
            heading,
            Number(comparison.baseline[key]),
            Number(comparison.candidate[key]),
            interval_cell(items[key], reach, told=excludes_zero(items[key])),
        ]
        for key, heading in METRICS.items()
    ]
    caption = "COCO's metrics, in percent." + (
        f" Intervals are about other {comparison.covers}; coloured where zero is outside." if comparison.covers else ""
    )
    headings: list[str | ArmHeading] = ["metric", *(ArmHeading(arm, named=True) for arm in SIDES), HEADING]
    return [Table(caption, headings, rows), *_gflops(comparison), *_runs(comparison)]


def _gflops(comparison: Comparison) -> list[Block]:
    sizes = sorted({arm.backbone_input for arm in comparison.arms if arm.backbone_input})
    shown = " and ".join(f"{height}×{width}" for height, width in sizes)
    return [Text(f"GFLOPs are 10⁹ multiply-adds of the backbone at {shown} pixels.")] if sizes else []


def _runs(comparison: Comparison) -> list[Block]:
    """Each run's metrics, where there are several."""
    spreads = comparison.runs
    if max(len(spreads[arm]["AP"].values) for arm in SIDES) < 2:
        return []
    names = [f"{arm} {number}" for arm in SIDES for number in range(1, len(spreads[arm]["AP"].values) + 1)]
    rows: list[list[Cell]] = [
        [
            heading,
            *(Number(value) for arm in SIDES for value in spreads[arm][key].values),
            *(Number(spreads[arm][key].std) for arm in SIDES),
        ]
        for key, heading in METRICS.items()
    ]
    stds = [f"± {arm}" for arm in SIDES]
    return [
        Text(_about_runs(comparison)),
        Table("Each run; ± is the standard deviation over runs.", ["metric", *names, *stds], rows, wide=True),
    ]


def _about_runs(comparison: Comparison) -> str:
    counts = [len(comparison.runs[arm]["AP"].values) for arm in SIDES]
    text = f"The figures above are means of {counts[0]} and {counts[1]} runs."
    if comparison.covers == "images and training runs" and min(counts) < 4:
        text += " So few runs make the intervals wide: more would narrow them."
    return text
