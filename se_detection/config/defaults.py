"""The defaults of `MODEL.SE` and of the trainer's keys, and helpers that read a config."""

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from typing import Any

from detectron2.config import CfgNode

from .se_config import SEConfig
from .timm_config import TimmConfig


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by full key, such as `MODEL.SE.REDUCTION`; tuples become lists, as in YAML."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


DEFAULTS: dict[str, Any] = {
    "MODEL": {
        "RESNETS": {"STEM_TYPE": "basic", "DROP_BLOCK": 0.0},
        "SE": {
            "IGNORE_PADDING": False,
            "FPN": False,
            "ROI": False,
            **{key.upper(): value for key, value in flatten(asdict(SEConfig())).items()},
        },
        "TIMM": {key.upper(): value for key, value in flatten(asdict(TimmConfig())).items()},
    },
    "INPUT": {
        "KEYPOINT_FLIP_MAP": [],
        "LARGE_SCALE_JITTER": {"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": [1024, 1024]},
        "ALBUMENTATIONS": "",
        "RANDOM_ERASING": {"PROB": 0.0, "AREA": [0.02, 0.33], "ASPECT_RATIO": [0.3, 3.3]},
    },
    "SOLVER": {
        "CHECKPOINTS_TO_KEEP": 0,
        "BEST_METRIC": "bbox/AP",
        "LOGGERS": ["tensorboard"],
        "EMA_DECAY": 0.0,
        "SKIP_NON_FINITE": 0,
        "BACKBONE_FREEZE_ITERS": 0,
        "BACKBONE_MULTIPLIER": 1.0,
        "OPTIMIZER": "SGD",
        "BETAS": [0.9, 0.999],
        "CHANNELS_LAST": False,
        "AMP": {"BF16": False},
    },
}


def add_se_config(cfg: CfgNode) -> None:
    """Adds the keys of this project that a config lacks, with their defaults; existing values stay.

    `MODEL.RESNETS.STEM_TYPE` is `basic` (detectron2's stem), `caffe` (the stem of the released Caffe models, with a
    ceil-mode pool) or `deep` (SENet-154's); `MODEL.RESNETS.DROP_BLOCK` is the rate of DropBlock at the end of a
    training. `MODEL.TIMM` has the fields of :class:`TimmConfig`. `MODEL.SE` has the fields of :class:`SEConfig`, and
    `IGNORE_PADDING`: compute the features of an image as if its batch had no padding; `FPN`: SE after the output
    convolution of each FPN level; `ROI`: SE after RoIAlign, in this project's ROI heads.
    `INPUT.KEYPOINT_FLIP_MAP` has the pairs of keypoints to swap in flipped images, by name; empty for those that the
    names show. `INPUT.LARGE_SCALE_JITTER` resizes training images by a random factor and crops or pads them to one
    size; `INPUT.RANDOM_ERASING` fills a random rectangle of them; `INPUT.ALBUMENTATIONS` is a file with transforms of
    their pixels. The keys of `SOLVER`:

    - `CHECKPOINTS_TO_KEEP`: how many periodic checkpoints are kept; 0 keeps all.
    - `BEST_METRIC`: the metric that selects `model_best.pth`, if `TEST.EVAL_PERIOD` is set; empty for none.
    - `LOGGERS`: where curves and images are sent: `tensorboard`, `wandb`, `mlflow`, `trackio`.
    - `EMA_DECAY`: the decay of a moving average of the weights; 0 for none.
    - `SKIP_NON_FINITE`: how many steps in a row may be skipped because their loss is not finite.
    - `BACKBONE_FREEZE_ITERS`: for how many iterations the backbone is frozen at the start.
    - `BACKBONE_MULTIPLIER`: the factor of the backbone's learning rate, but not of SE blocks that were added to it.
    - `OPTIMIZER`: `SGD` or `ADAMW`; `BETAS`: AdamW's.
    - `CHANNELS_LAST`: train in the channels-last memory format; on a CPU, RoIAlign too.
    - `AMP.BF16`: mixed precision in bfloat16 instead of float16.

    Raises:
        AttributeError: a key is missing and the config is frozen.
    """
    _fill(cfg, DEFAULTS)


def _fill(node: CfgNode, defaults: Mapping[str, Any]) -> None:
    for key, value in defaults.items():
        if key not in node:
            setattr(node, key, CfgNode() if isinstance(value, dict) else copy(value))
        if isinstance(value, dict):
            _fill(node[key], value)


def classes_node(cfg: CfgNode) -> str:
    """The node of `MODEL` whose `NUM_CLASSES` the detector uses: `RETINANET` or `ROI_HEADS`."""
    return "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
