"""Checks of the values of a config that do not depend on the machine or the data."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any
from unicodedata import category

from detectron2.config import CfgNode
from torch import finfo, float32

from ..errors import UserError
from .defaults import flatten

# The largest integer of torch, numpy and OpenCV, and the largest float32.
LARGEST_INTEGER = 2**31 - 1
LARGEST = finfo(float32).max
# The largest side of an image in pixels, and the longest text.
LARGEST_SIZE = 10_000
LONGEST = 1000
# Infinity is allowed: detectron2 documents it as the norm of the largest element.
INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)
ANCHORS = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
# detectron2 reads these two only in the first step of a training. Rotated boxes have a fifth weight.
BOX_WEIGHTS = tuple(f"MODEL.{head}.BBOX_REG_WEIGHTS" for head in ("RPN", "ROI_BOX_HEAD", "RETINANET"))
BOX_LOSSES = tuple(f"MODEL.{head}.BBOX_REG_LOSS_TYPE" for head in ("RPN", "ROI_BOX_HEAD", "RETINANET"))
LOSSES = ("smooth_l1", "giou", "diou", "ciou")
EXPECTED = [[str, str, *kinds] for kinds in product((int, float), repeat=2)]
RANGES: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (
        1,
        LARGEST_INTEGER,
        (
            *("MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP", "MODEL.RESNETS.STEM_OUT_CHANNELS"),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", "MODEL.RESNETS.DEFORM_NUM_GROUPS", "MODEL.FPN.OUT_CHANNELS"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
            *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", "MODEL.SEM_SEG_HEAD.CONVS_DIM"),
            *("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST", "TEST.AUG.MAX_SIZE", "TEST.PRECISE_BN.NUM_ITER"),
            *("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.NUM_DECAYS"),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TEST", "MODEL.RPN.POST_NMS_TOPK_TRAIN"),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
        ),
    ),
    (
        0,
        LARGEST,
        (
            *("SOLVER.BASE_LR", "SOLVER.BASE_LR_END", "SOLVER.BIAS_LR_FACTOR", "SOLVER.BACKBONE_MULTIPLIER"),
            *("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.MOMENTUM"),
            *("SOLVER.GAMMA", "SOLVER.STEPS", "SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_ITERS"),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "SOLVER.CHECKPOINTS_TO_KEEP"),
            *("SOLVER.SKIP_NON_FINITE", "SOLVER.BACKBONE_FREEZE_ITERS", "TEST.EVAL_PERIOD", "VIS_PERIOD"),
        ),
    ),
    # Created one by one, or in memory at the same time.
    (0, 64, ("MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_MASK_HEAD.NUM_CONV")),
    (0, 64, ("MODEL.RETINANET.NUM_CONVS",)),
    (0, 1024, ("DATALOADER.NUM_WORKERS",)),
    (1, 2**16, ("SOLVER.IMS_PER_BATCH",)),
    (1, 1024, tuple(f"MODEL.ROI_{head}_HEAD.POOLER_RESOLUTION" for head in ("BOX", "MASK", "KEYPOINT"))),
    (0, 1024, tuple(f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO" for head in ("BOX", "MASK", "KEYPOINT"))),
    (1, LARGEST_SIZE, ("INPUT.MIN_SIZE_TRAIN", "TEST.AUG.MIN_SIZES")),
    (0, LARGEST_SIZE, ("INPUT.MIN_SIZE_TEST",)),
    # Divisors, and arguments of logarithms.
    (1e-3, 1e6, ("MODEL.PIXEL_STD", *ANCHORS, *BOX_WEIGHTS, "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS")),
    (1e-3, 1e6, ("TEST.KEYPOINT_OKS_SIGMAS",)),
)


def check_values(cfg: CfgNode, defaults: dict[str, Any]) -> None:
    """Refuses values that would fail later in a run, or be misread.

    Args:
        defaults: the default values by full key.

    Raises:
        UserError: a value is missing, not a number or out of range, or a text has control characters.
    """
    values = flatten(cfg)
    for key, value in values.items():
        # yacs accepts None for any value.
        if value is None and defaults.get(key) is not None:
            raise UserError(f"{key}: it has no value; its default is {defaults[key]!r}")
        for item in _items(value):
            _check_item(key, item)
    for low, high, keys in RANGES:
        for key in keys:
            if values[key] is not None:
                items = list(_items(values[key])) if isinstance(defaults[key], list) else [values[key]]
                _check_range(key, items, low, high)
    for key in ANCHORS:
        if not all(isinstance(items, int | float) or items for items in [values[key], *values[key]]):
            raise UserError(f"{key}: {values[key]} has no values; give a list for each feature map, or one for all")
    for key in BOX_WEIGHTS:
        if len(values[key]) not in (4, 5):
            raise UserError(f"{key}: {values[key]} has {len(values[key])} values; give 4: for x, y, width and height")
    for key in BOX_LOSSES:
        if values[key] not in LOSSES:
            raise UserError(f"{key}: {values[key]!r} is not one of {', '.join(LOSSES)}")

    # detectron2 reads these only after training and evaluation.
    for expected in values["TEST.EXPECTED_RESULTS"]:
        if not isinstance(expected, list | tuple) or [type(item) for item in expected] not in EXPECTED:
            raise UserError(f"TEST.EXPECTED_RESULTS: {expected!r} is not [task, metric, value, tolerance]")
    if values["TEST.AUG.ENABLED"] and not values["TEST.AUG.MIN_SIZES"]:
        raise UserError("TEST.AUG.MIN_SIZES: it is empty, and test-time augmentation is on; give at least one size")


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _check_item(key: str, item: Any) -> None:
    if isinstance(item, str) and len(item) > LONGEST:
        raise UserError(f"{key}: {item[:40]!r}... has {len(item)} characters; at most {LONGEST} are allowed")
    if isinstance(item, str) and any(category(character) in ("Cc", "Cs") for character in item):
        raise UserError(f"{key}: {item!r} has characters that can't be printed")
    if isinstance(item, bool) or not isinstance(item, int | float):
        return
    largest = LARGEST_INTEGER if isinstance(item, int) else LARGEST
    if math.isnan(item) or (abs(item) > largest and not (math.isinf(item) and key in INFINITE)):
        # Python does not print integers with very many digits.
        shown = f"{item:g}" if isinstance(item, float) else f"a whole number of {item.bit_length()} bits"
        raise UserError(f"{key}: {shown} is out of range; give a number between {-largest:g} and {largest:g}")


def _check_range(key: str, items: list[Any], low: float, high: float) -> None:
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise UserError(f"{key}: {item!r} is not a number")
        if item < low:
            raise UserError(f"{key}: {item} is {f'less than {low:g}' if low else 'negative'}")
        if item > high and key not in INFINITE:
            raise UserError(f"{key}: {item} is more than {high:g}")
