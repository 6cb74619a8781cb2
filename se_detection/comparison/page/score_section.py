"""The metrics of a comparison, and cells for differences with their intervals."""

from collections.abc import Iterable

from ...visualization.page_blocks import (
    Block,
    Cell,
    Interval,
    KeyFigure,
    KeyFigures,
    ModelHeading,
    Number,
    Scale,
    Table,
    Text,
)
from ..intervals import Difference
from ..result import ROLES, Comparison
from ..tables import COLUMNS, RECALLS

COSTS = ("parameters", "gflops")
# AP comes first here, and AP50 first in the tables.
METRICS = {"AP": "AP", **{key: heading for key, (heading, _, _) in (COLUMNS | RECALLS).items() if key not in COSTS}}
HEADINGS = {key: heading for key, (heading, _, _) in COLUMNS.items()} | {"parameters": "Parameters (M)"}
INTERVAL_HEADING = "difference, 95\u00a0% interval"


def common_reach(differences: Iterable[Difference]) -> float:
    """The reach of a scale that shows all the differences and their intervals."""
    ends = (end for item in differences for end in (item.value, item.low, item.high))
    return max((abs(end) for end in ends if end is not None), default=0.0)


def interval_cell(item: Difference, reach: float, *, significant: bool = False) -> Interval:
    """A difference on a scale; see :func:`common_reach`."""
    return Interval(item.value, item.low, item.high, reach, significant)


def lead_blocks(comparison: Comparison) -> list[Block]:
    """The difference in AP on a scale, and the most important numbers."""
    blocks: list[Block] = []
    ap = comparison.difference["AP"]
    if ap.low is not None:
        interval = interval_cell(ap, common_reach([ap]), significant=ap.excludes_zero)
        label = "Difference in AP, with its 95\u00a0% interval; the vertical line marks no difference."
        blocks.append(Scale(interval, "baseline better", "candidate better", label))
    figures = []
    for key in ("AP", "AP50", *COSTS):
        _, unit, places = COLUMNS[key]
        values = [getattr(comparison, role).get(key) for role in ROLES]
        if values != [None, None]:
            numbers = [Number(value, unit, places, role=role) for role, value in zip(ROLES, values, strict=True)]
            difference = Number(comparison.difference[key].value, unit, places, signed=True)
            figures.append(KeyFigure(HEADINGS[key], numbers, difference))
    return [*blocks, KeyFigures(figures)] if figures else blocks


def score_blocks(comparison: Comparison) -> list[Block]:
    """All metrics with their intervals and, with several runs, those of each run."""
    items = {key: comparison.difference[key] for key in METRICS}
    reach = common_reach(items.values())
    rows: list[list[Cell]] = [
        [
            heading,
            Number(comparison.baseline[key]),
            Number(comparison.candidate[key]),
            interval_cell(items[key], reach, significant=items[key].excludes_zero),
        ]
        for key, heading in METRICS.items()
    ]
    caption = "COCO's metrics, in percent." + (
        f" The intervals are over {comparison.covers}; coloured if they exclude zero." if comparison.covers else ""
    )
    headings: list[str | ModelHeading] = [
        "metric",
        *(ModelHeading(role, named=True) for role in ROLES),
        INTERVAL_HEADING,
    ]
    return [Table(caption, headings, rows), *_gflops(comparison), *_runs(comparison)]


def _gflops(comparison: Comparison) -> list[Block]:
    sizes = sorted({model.backbone_input for model in comparison.models if model.backbone_input})
    shown = " and ".join(f"{height}×{width}" for height, width in sizes)
    return [Text(f"GFLOPs are 10⁹ multiply-adds of the backbone at {shown} pixels.")] if sizes else []


def _runs(comparison: Comparison) -> list[Block]:
    """The metrics of each run, if there are several."""
    spreads = comparison.runs
    if max(len(spreads[role]["AP"].values) for role in ROLES) < 2:
        return []
    names = [f"{role} {number}" for role in ROLES for number in range(1, len(spreads[role]["AP"].values) + 1)]
    rows: list[list[Cell]] = [
        [
            heading,
            *(Number(value) for role in ROLES for value in spreads[role][key].values),
            *(Number(spreads[role][key].std) for role in ROLES),
        ]
        for key, heading in METRICS.items()
    ]
    stds = [f"± {role}" for role in ROLES]
    return [
        Text(_about_runs(comparison)),
        Table("Each run; ± is the standard deviation over runs.", ["metric", *names, *stds], rows, wide=True),
    ]


def _about_runs(comparison: Comparison) -> str:
    counts = [len(comparison.runs[role]["AP"].values) for role in ROLES]
    text = f"The values above are means of {counts[0]} and {counts[1]} runs."
    if comparison.covers == "images and training runs" and min(counts) < 4:
        text += " With so few runs the intervals are wide; more runs would narrow them."
    return text
