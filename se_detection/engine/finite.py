"""Losses that are not finite: what can be said about them, and what is kept for whoever looks into it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

REPORT = "non_finite.json"
# detectron2's recipes: a learning rate of 0.02 for 16 images.
RATE_PER_IMAGE = 0.02 / 16


def usual_causes(cfg: CfgNode, pictures: int) -> list[str]:
    """What most often makes a loss infinite, as far as it applies to a config and a batch of all processes."""
    usual = RATE_PER_IMAGE * pictures
    causes = [
        f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR:g} is high for a batch of {pictures} (detectron2's recipes have {usual:g})"
    ]
    if not cfg.MODEL.WEIGHTS and (cfg.MODEL.RESNETS.NORM == "FrozenBN" or cfg.MODEL.BACKBONE.FREEZE_AT > 0):
        causes.append(
            "MODEL.WEIGHTS is empty, so the trunk is random, and with MODEL.RESNETS.NORM FrozenBN or "
            "MODEL.BACKBONE.FREEZE_AT above 0 it can't learn (from scratch: BN or GN, and 0)"
        )
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        causes.append("SOLVER.CLIP_GRADIENTS.ENABLED is off")
    return causes


def append_report(folder: Path, entry: dict[str, Any]) -> None:
    """Adds to a run's `non_finite.json`: the iteration, the losses and the pictures of each process's batch."""
    path = folder / REPORT
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    path.write_text(json.dumps([*entries, entry], indent=2) + "\n", encoding="utf-8")


def names(files: Sequence[str], most: int = 8) -> str:
    """A few file names for a message."""
    shown = [Path(file).name for file in files[:most]]
    return ", ".join(shown) + (f" and {len(files) - most} more" if len(files) > most else "")
