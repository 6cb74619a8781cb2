"""`metrics.json` of a run, as detectron2 writes it: one line of JSON per logged iteration."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.coco_format import is_number
from ..files import write_whole
from .run_folder import METRICS_FILE


class MetricsFile:
    """Reads what was logged, and drops the lines of iterations that a resumed run repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def at(self, iteration: int) -> dict[str, Any]:
        """The values logged at an iteration."""
        found: dict[str, Any] = {}
        for content in self.lines():
            found |= content if content["iteration"] == iteration else {}
        return found

    def evaluated(self, iteration: int) -> bool:
        """Whether a detector's AP or a classifier's top-1 accuracy was logged at an iteration."""
        return any(key.endswith(("/AP", "/top1")) for key in self.at(iteration))

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines, in order."""
        return [content for _, content in self._lines()]

    def forget_from(self, start: int) -> None:
        """Removes the lines of iterations from `start` on, and a truncated line."""
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


TrainingCurve = dict[str, dict[int, float]]


def read_training_curve(run: Path) -> TrainingCurve:
    """Reads `loss` and `ap` (in percent) of a run by iteration from `metrics.json`; empty without one.

    If an iteration was logged twice, the last value counts. Truncated lines are ignored.
    """
    curve: TrainingCurve = {"loss": {}, "ap": {}}
    for content in MetricsFile(run / METRICS_FILE).lines():
        for key, name in (("total_loss", "loss"), ("bbox/AP", "ap")):
            if is_number(content.get(key)):
                curve[name][content["iteration"]] = float(content[key])
    return curve
