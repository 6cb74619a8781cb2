"""What a comparison of two detectors holds; figures are in percent, and None where they are undefined."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .details import Calibration, Curve
from .error_types import ErrorType
from .intervals import FALSE_DISCOVERY_RATE, Difference


@dataclass(frozen=True)
class ComparedModel:
    """What a table calls a detector; `backbone_input` is the (height, width) that its GFLOPs were counted at."""

    name: str
    backbone: str = ""
    backbone_input: tuple[int, int] | None = None


@dataclass(frozen=True)
class Spread:
    """A metric of each run, and their standard deviation, which is None for a single run."""

    values: list[float | None]
    std: float | None


@dataclass(frozen=True)
class ClassDifference:
    """A class's AP, and the difference with its own 95 % interval, whatever the other classes are.

    `images` hold objects of the class; `p_adjusted` is the p-value after Benjamini and Hochberg, over all classes.
    """

    images: int
    baseline: float | None
    candidate: float | None
    difference: Difference
    p_adjusted: float | None

    @property
    def told(self) -> bool:
        """Whether a difference can be told, at a false discovery rate of 5 %."""
        return self.p_adjusted is not None and self.p_adjusted <= FALSE_DISCOVERY_RATE


@dataclass(frozen=True)
class Details:
    """In what the detectors differ, by arm or for both.

    The `x` of `precision_recall` is recall in percent, by IoU threshold. That of `ap_by_size` is the largest object of
    each range, as the square root of its area in pixels; the ranges hold equally many objects.
    """

    error_types: dict[str, dict[str, ErrorType]]
    precision_recall: dict[str, Curve]
    ap_by_iou: Curve
    ap_by_size: Curve
    calibration: dict[str, Calibration | None]


@dataclass(frozen=True)
class Comparison:
    """AP, AP50, AP75, APs, APm, APl and AR1, AR10, AR100, ARs, ARm, ARl of two detectors, and in what they differ.

    Of several runs, `baseline` and `candidate` are the means, and `runs` has each one's. `covers` is what the intervals
    are about: `images`, `images and training runs`, or empty where there are none. Of run folders, `parameters` and
    `gflops` are among the metrics, `names` are the folders, and `recipe` has the config keys that differ and their
    values: those of `backbone and weights`, and `others`.
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
    arms: tuple[ComparedModel, ComparedModel] = (ComparedModel("baseline"), ComparedModel("candidate"))

    def to_dict(self) -> dict[str, Any]:
        """The content of `comparison.json`."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self) if item.name != "arms"}


def _plain(value: Any) -> Any:
    """As JSON has it: no dataclasses, no NaN."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
