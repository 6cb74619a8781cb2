"""A run's `metrics.json`, as detectron2 writes it: a line of JSON for each iteration that is logged."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.coco_format import is_number
from ..files import write_whole


class MetricsFile:
    """What was logged, read back when a run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def at(self, iteration: int) -> dict[str, Any]:
        """What was logged of an iteration."""
        found: dict[str, Any] = {}
        for content in self.lines():
            found |= content if content["iteration"] == iteration else {}
        return found

    def evaluated(self, iteration: int) -> bool:
        """Whether a detector's AP or a classifier's top-1 was logged of an iteration."""
        return any(key.endswith(("/AP", "/top1")) for key in self.at(iteration))

    def lines(self) -> list[dict[str, Any]]:
        """All that was logged, in its order."""
        return [content for _, content in self._lines()]

    def forget_from(self, start: int) -> None:
        """Leaves out the iterations that are done again, and a line that was cut off."""
        if self.path.is_file():
            kept = "".join(line + "\n" for line, content in self._lines() if content["iteration"] < start)
            write_whole(self.path, lambda file: file.write(kept.encode()))

    def _lines(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        for line in lines:
            with suppress(ValueError, RecursionError):
                content = json.loads(line)
                if isinstance(content, dict) and isinstance(content.get("iteration"), int):
                    found.append((line, content))
        return found


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
