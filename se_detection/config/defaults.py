"""The defaults of `MODEL.SE` and of the trainer's keys, and what is read of a config in several places."""

from dataclasses import asdict
from typing import Any

from detectron2.config import CfgNode

from .se_config import SEConfig

TRAINER = {
    "CHECKPOINTS_TO_KEEP": 0,
    "BEST_METRIC": "bbox/AP",
    "EMA_DECAY": 0.0,
    "SKIP_NON_FINITE": 0,
    "BACKBONE_FREEZE_ITERS": 0,
    "BACKBONE_MULTIPLIER": 1.0,
    "CHANNELS_LAST": False,
}


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by full key, such as `MODEL.SE.REDUCTION`; tuples as lists, as YAML knows no others."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def classes_node(cfg: CfgNode) -> str:
    """The node of `MODEL` whose `NUM_CLASSES` a config's detector goes by."""
    return "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"


def add_se_config(cfg: CfgNode) -> None:
    """Adds `MODEL.SE`, and what this project's trainer reads in `SOLVER`, with defaults; what is there stays as it is.

    The trainer's: `CHECKPOINTS_TO_KEEP`, the number of checkpoints along the way that are kept, 0 for all;
    `BEST_METRIC`, by which `model_best.pth` is chosen where `TEST.EVAL_PERIOD` is set, empty for none; `EMA_DECAY` of a
    moving average of the weights, 0 for none; `SKIP_NON_FINITE`, how many steps in a row are skipped for a loss that is
    not finite before the run stops; `BACKBONE_FREEZE_ITERS`, for how many iterations the backbone is frozen at first;
    `BACKBONE_MULTIPLIER`, of its learning rate; `CHANNELS_LAST`, the order of the weights in memory; `AMP.BF16`, mixed
    precision in bfloat16 instead of float16.
    """
    for key, value in TRAINER.items():
        cfg.setdefault("SOLVER", CfgNode()).setdefault(key, value)
    cfg.SOLVER.setdefault("AMP", CfgNode()).setdefault("BF16", False)
    # "basic" is detectron2's stem, "caffe" that of the released Caffe models (ceil-mode pool), "deep" SENet-154's.
    cfg.MODEL.setdefault("RESNETS", CfgNode()).setdefault("STEM_TYPE", "basic")
    se = cfg.MODEL.setdefault("SE", CfgNode())
    for field, value in asdict(SEConfig()).items():
        se.setdefault(field.upper(), list(value) if isinstance(value, tuple) else value)
    # Of the backbone: whether features are computed as if there were no padding in the batch.
    se.setdefault("IGNORE_PADDING", False)
