"""The result of a comparison of two detectors. Metrics are in percent, and None where they are undefined."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..runs.evaluated_checkpoint import EvaluatedCheckpoint
from .details import Calibration, Curve
from .error_types import ErrorType
from .intervals import FALSE_DISCOVERY_RATE, Difference

ROLES = ("baseline", "candidate")
# The metrics of the verdict, and their names there.
HEADLINE = {"AP": "AP", "AP50": "AP@0.5"}


@dataclass(frozen=True)
class ComparedModel:
    """A detector's name and backbone, for tables; its GFLOPs are for a `backbone_input` of (height, width)."""

    name: str
    backbone: str = ""
    backbone_input: tuple[int, int] | None = None


@dataclass(frozen=True)
class Spread:
    """A metric of each run, and the standard deviation over the runs, None for a single run."""

    values: list[float | None]
    std: float | None


@dataclass(frozen=True)
class ClassDifference:
    """A class's AP with both detectors, and the difference with a 95 % interval for this class alone.

    `images` is the number of images with objects of the class; `p_adjusted` is the p-value, adjusted for the number of
    classes (Benjamini and Hochberg).
    """

    images: int
    baseline: float | None
    candidate: float | None
    difference: Difference
    p_adjusted: float | None

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at a false discovery rate of 5 %."""
        return self.p_adjusted is not None and self.p_adjusted <= FALSE_DISCOVERY_RATE


@dataclass(frozen=True)
class Details:
    """Error types, curves and calibration. `error_types` and `calibration` are by role, `precision_recall` by IoU.

    In `precision_recall`, `x` is the recall in percent. In `ap_by_size`, `x` is the upper end of a range of object
    sizes, as the square root of the area in pixels; each range holds the same number of objects.
    """

    error_types: dict[str, dict[str, ErrorType]]
    precision_recall: dict[str, Curve]
    ap_by_iou: Curve
    ap_by_size: Curve
    calibration: dict[str, Calibration | None]


@dataclass(frozen=True)
class Comparison:
    """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl of two detectors, and their differences.

    With several runs of a detector, `baseline` and `candidate` are means, and `runs` has the values of each run.
    `covers` is what the intervals cover: `images`, `images and training runs`, or empty without intervals. `verdict` is
    a sentence on AP and AP50, each by its own interval.

    For run folders, the metrics include `parameters` and `gflops`, `names` are the folders, and `recipe` holds the
    config keys that differ, with their values, under `backbone and weights` and `others`. `checkpoints` are those that
    were evaluated, None if a run does not record it.
    """

    baseline: dict[str, float | None]
    candidate: dict[str, float | None]
    difference: dict[str, Difference]
    verdict: str
    covers: str
    runs: dict[str, dict[str, Spread]]
    per_class: dict[str, ClassDifference]
    details: Details
    notes: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    recipe: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    checkpoints: dict[str, list[EvaluatedCheckpoint | None]] = field(default_factory=dict)
    models: dict[str, ComparedModel] = field(default_factory=lambda: {role: ComparedModel(role) for role in ROLES})

    @property
    def backbone_sizes(self) -> str:
        """The image sizes for which GFLOPs were counted, such as `480×640`."""
        sizes = sorted({model.backbone_input for model in self.models.values() if model.backbone_input})
        return " and ".join(f"{height}×{width}" for height, width in sizes)

    @property
    def better(self) -> str:
        """The better model's role, by AP and AP50; empty if they disagree, or do not differ significantly."""
        differences = (self.difference[key] for key in HEADLINE)
        roles = {ROLES[(item.value or 0) > 0] for item in differences if item.excludes_zero}
        return roles.pop() if len(roles) == 1 else ""

    @property
    def has_few_runs(self) -> bool:
        """Whether the intervals cover training runs, but so few that they are wide."""
        counts = [len(spreads["AP"].values) for spreads in self.runs.values()]
        return self.covers == "images and training runs" and min(counts) < 4

    def to_dict(self) -> dict[str, Any]:
        """The content of `comparison.json`; None for NaN."""
        content = {name: value for name, value in asdict(self).items() if name != "models"}
        return json.loads(json.dumps(content), parse_constant=lambda _: None)
