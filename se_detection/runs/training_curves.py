"""What a run logged while it was trained."""

from dataclasses import dataclass, field
from pathlib import Path

from ..data.coco_format import is_number
from .metrics import MetricsFile


@dataclass(frozen=True)
class TrainingCurve:
    """Total loss and, in percent, AP by iteration."""

    loss: dict[int, float] = field(default_factory=dict)
    ap: dict[int, float] = field(default_factory=dict)


def read_training_curve(run: Path) -> TrainingCurve:
    """Reads a run's `metrics.json`, detectron2's lines of JSON; empty where there is none.

    Of an iteration that was done twice, the last holds. Lines that were cut off count for nothing.
    """
    curve = TrainingCurve()
    for content in MetricsFile(run / "metrics.json").lines():
        for key, values in (("total_loss", curve.loss), ("bbox/AP", curve.ap)):
            if is_number(content.get(key)):
                values[content["iteration"]] = float(content[key])
    return curve
