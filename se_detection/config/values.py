"""Which values a config may have, whatever machine and data it is for."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any
from unicodedata import category

from detectron2.config import CfgNode
from torch import finfo, float32

from ..errors import UserError
from .defaults import flatten

# What counts in torch, numpy and OpenCV, and float32, can hold.
LARGEST_INTEGER = 2**31 - 1
LARGEST = finfo(float32).max
# Of an image's side in pixels, and of a text.
LARGEST_SIZE = 10_000
LONGEST = 1000
# As detectron2 documents it: the largest element's norm.
INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)
ANCHORS = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
# These two detectron2 looks at in a training's first step. Rotated boxes have a fifth weight.
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
    # What is made one by one, or is in memory at once.
    (0, 64, ("MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_MASK_HEAD.NUM_CONV")),
    (0, 64, ("MODEL.RETINANET.NUM_CONVS",)),
    (0, 1024, ("DATALOADER.NUM_WORKERS",)),
    (1, 2**16, ("SOLVER.IMS_PER_BATCH",)),
    (1, 1024, tuple(f"MODEL.ROI_{head}_HEAD.POOLER_RESOLUTION" for head in ("BOX", "MASK", "KEYPOINT"))),
    (0, 1024, tuple(f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO" for head in ("BOX", "MASK", "KEYPOINT"))),
    (1, LARGEST_SIZE, ("INPUT.MIN_SIZE_TRAIN", "TEST.AUG.MIN_SIZES")),
    (0, LARGEST_SIZE, ("INPUT.MIN_SIZE_TEST",)),
    # What is divided by, or taken the logarithm of.
    (1e-3, 1e6, ("MODEL.PIXEL_STD", *ANCHORS, *BOX_WEIGHTS, "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS")),
    (1e-3, 1e6, ("TEST.KEYPOINT_OKS_SIGMAS",)),
)


def check_values(cfg: CfgNode, defaults: dict[str, Any]) -> None:
    """Finds values that would be stumbled over later, or be taken for something else.

    Args:
        defaults: the values by full key, before a person's were merged into them.

    Raises:
        UserError: a value is missing, is no number where there must be one, or is none that can be computed with; or
            a text has control characters.
    """
    values = flatten(cfg)
    for key, value in values.items():
        # yacs lets None take the place of anything.
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

    # When all is trained and evaluated, detectron2 takes them apart.
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
        raise UserError(f"{key}: {item[:40]!r}... has {len(item)} characters; no value needs more than {LONGEST}")
    if isinstance(item, str) and any(category(character) in ("Cc", "Cs") for character in item):
        raise UserError(f"{key}: {item!r} has characters that can't be printed")
    if isinstance(item, bool) or not isinstance(item, int | float):
        return
    largest = LARGEST_INTEGER if isinstance(item, int) else LARGEST
    if math.isnan(item) or (abs(item) > largest and not (math.isinf(item) and key in INFINITE)):
        # Python doesn't print numbers of very many digits.
        shown = f"{item:g}" if isinstance(item, float) else f"a whole number of {item.bit_length()} bits"
        raise UserError(f"{key}: {shown} can't be computed with; give a number between {-largest:g} and {largest:g}")


def _check_range(key: str, items: list[Any], low: float, high: float) -> None:
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise UserError(f"{key}: {item!r} is no number")
        if item < low:
            raise UserError(f"{key}: {item} is {f'less than {low:g}' if low else 'negative'}")
        if item > high and key not in INFINITE:
            raise UserError(f"{key}: {item} is more than {high:g}")
