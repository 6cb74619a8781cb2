"""The progress of a training on the screen, and its metrics in words."""

import logging
import math
import time
from collections.abc import Mapping
from datetime import timedelta

from detectron2.engine import HookBase

from .run_log import seconds_between_lines

# How metrics are called for a person; their names in detectron2.
METRICS = {"AP": "AP", "AP50": "AP@0.5", "PQ": "PQ", "mIoU": "mIoU", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}
# Seconds after the first step: soon, because the first step is slow and its ETA is rough.
SECOND_LINE = 10.0

logger = logging.getLogger(__name__)


class Progress(HookBase):
    """Logs a line after the first step, then every 20 seconds or less often, and after each evaluation.

    Register it in the main process, after the evaluation.
    """

    def before_train(self) -> None:
        """Starts the clock."""
        self.started = time.monotonic()
        self.next_line = 0.0

    def after_step(self) -> None:
        """Logs what is due."""
        elapsed = time.monotonic() - self.started
        if elapsed >= self.next_line:
            is_first = self.trainer.iter == self.trainer.start_iter
            self.next_line = elapsed + (SECOND_LINE if is_first else seconds_between_lines(elapsed))
            logger.info(self._line(elapsed))
        # The last evaluation is in the summary.
        latest = self.trainer.storage.latest()
        evaluated = {key: value for key, (value, at) in latest.items() if at == self.trainer.iter and is_headline(key)}
        if evaluated:
            logger.info("step %d: %s", self.trainer.iter + 1, "; ".join(headlines(evaluated)))

    def _line(self, elapsed: float) -> str:
        storage, total = self.trainer.storage, self.trainer.max_iter
        done = self.trainer.iter + 1
        histories = storage.histories()
        # detectron2's timer skips the first steps, which are slower.
        seconds = elapsed / (done - self.trainer.start_iter)
        if "time" in histories:
            seconds = histories["time"].median(1000)
        parts = [f"step {done:>{len(str(total))}}/{total}"]
        # A sum is logged if there are several losses; none at a step that was skipped.
        if loss := histories.get("total_loss") or next((histories[key] for key in histories if "loss" in key), None):
            parts.append(f"loss {loss.median(20):.3f}")
        if "lr" in histories:
            parts.append(f"learning rate {histories['lr'].latest():.2g}")
        return "  ".join([*parts, f"{seconds:.2f} s/step", f"ETA {duration(seconds * (total - done))}"])


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `0:01:30`."""
    return str(timedelta(seconds=round(seconds)))


def is_headline(key: str) -> bool:
    """Whether a metric of detectron2's flat results, such as `bbox/AP`, is shown."""
    return "/" in key and key.rpartition("/")[2] in METRICS


def headlines(flat: Mapping[str, float]) -> list[str]:
    """AP and AP@0.5 (or the task's metrics) of each task and test set: `AP 40.1, AP@0.5 61.2`, `segm: AP 35.0, ...`.

    Args:
        flat: detectron2's flat results, in percent.
    """
    tasks: dict[str, list[str]] = {}
    for key in filter(is_headline, flat):
        task, _, metric = key.rpartition("/")
        value = "undefined" if math.isnan(flat[key]) else f"{flat[key]:.1f}"
        tasks.setdefault(task, []).append(f"{METRICS[metric]} {value}")
    return [
        ", ".join(found) if task in ("bbox", "classification") else f"{task}: {', '.join(found)}"
        for task, found in tasks.items()
    ]
