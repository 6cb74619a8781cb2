"""Measures how well a config's anchors cover a data set's boxes; a detector hardly learns boxes without an anchor."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from numpy.typing import NDArray

from ...errors import UserError

Array = NDArray[np.float64]

# RetinaNet trains a box on all anchors of at least this IoU (RPN: 0.7), or else on its best anchor only.
MIN_IOU = 0.5
# COCO's limits between small, medium and large, in pixels² of the image as annotated.
SIZE_CLASSES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf), "all": (0, np.inf)}


def fit_anchors(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]], cfg: CfgNode) -> dict[str, Any]:
    """Compares boxes with a config's anchors, in pixels after the config's resizing for testing.

    Args:
        boxes: (x, y, width, height) in pixels; no empty boxes.
        sizes: (height, width) of each box's image.

    Returns:
        `sides`: the smallest and largest √(width × height) of the anchors; `ratios`: their smallest and largest
        height / width; `test_size`: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; `classes`: the boxes by size, and all boxes,
        each with its `name`, the number of `boxes`, the median `side` (√(width × height)), the median `iou` with the
        best anchor (None without boxes), and the number of `uncovered` boxes, whose best anchor has an IoU below 0.5;
        `too_small`, `too_large`, `too_long`: the numbers of uncovered boxes that are smaller than all anchors, larger
        than all, or otherwise flatter or taller than all.

    Raises:
        UserError: the config does not use detectron2's default anchor generator.
    """
    xywh = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    resized, scaled = resize_boxes(xywh, sizes, cfg)
    generator, divisibility = _anchor_generator(cfg)
    ious = best_ious(scaled, resized, generator, divisibility)
    anchors = torch.cat(list(generator.cell_anchors)).double().numpy()
    anchor_sides, anchor_ratios = _sides_and_ratios(anchors[:, 2:] - anchors[:, :2])
    sides, ratios = _sides_and_ratios(scaled[:, 2:])
    uncovered = ious < MIN_IOU
    small, large = sides < anchor_sides.min(), sides > anchor_sides.max()
    long = (ratios < anchor_ratios.min()) | (ratios > anchor_ratios.max())
    areas = xywh[:, 2] * xywh[:, 3]
    classes = []
    for name, (low, high) in SIZE_CLASSES.items():
        chosen = (low <= areas) & (areas < high)
        side, iou = (float(np.median(values[chosen])) if chosen.any() else None for values in (sides, ious))
        counts = {"boxes": int(chosen.sum()), "side": side, "iou": iou, "uncovered": int((chosen & uncovered).sum())}
        classes.append({"name": name, **counts})
    return {
        "sides": (float(anchor_sides.min()), float(anchor_sides.max())),
        "ratios": (float(anchor_ratios.min()), float(anchor_ratios.max())),
        "test_size": (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        "classes": classes,
        "too_small": int((uncovered & small).sum()),
        "too_large": int((uncovered & large).sum()),
        "too_long": int((uncovered & long & ~small & ~large).sum()),
    }


def _sides_and_ratios(sizes: Array) -> tuple[Array, Array]:
    """√(width × height) and height / width."""
    return np.sqrt(sizes.prod(axis=1)), sizes[:, 1] / sizes[:, 0]


def resize_boxes(boxes: Array, sizes: Sequence[tuple[int, int]], cfg: CfgNode) -> tuple[Array, Array]:
    """The images' (height, width), N×2, and their boxes, N×4, after the config's resizing for testing."""
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    shapes = {
        size: ResizeShortestEdge.get_output_shape(*size, short, longest) if short else size for size in set(sizes)
    }
    before = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    after = np.asarray([shapes[size] for size in sizes], dtype=np.float64).reshape(-1, 2)
    return after, boxes * np.tile((after / before)[:, ::-1], 2)


def best_ious(boxes: Array, sizes: Array, generator: DefaultAnchorGenerator, divisibility: int) -> Array:
    """The IoU of each box with the best of all anchors of its image.

    The anchors of one shape and feature map form a grid. The best one is nearest to the box's centre, as the overlap
    shrinks with the distance in x and in y, so only that anchor is compared.

    Args:
        boxes: (x, y, width, height), N×4.
        sizes: (height, width) of each box's image, N×2.
        divisibility: the backbone's `size_divisibility`; images are padded to a multiple of it (0: no padding).
    """
    padded = np.ceil(sizes / max(divisibility, 1)) * max(divisibility, 1)
    centres, extents = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]
    best = np.zeros(len(boxes))
    for anchors, stride in zip(generator.cell_anchors, generator.strides, strict=True):
        last = np.ceil(padded[:, ::-1] / stride) - 1
        nearest = np.clip(np.round(centres / stride - generator.offset), 0, last)
        distance = np.abs((nearest + generator.offset) * stride - centres)
        for anchor in anchors.double().numpy():
            extent = anchor[2:] - anchor[:2]
            overlap = np.minimum(np.minimum(extents, extent), (extents + extent) / 2 - distance).clip(min=0)
            intersection = overlap.prod(axis=1)
            union = extents.prod(axis=1) + extent.prod() - intersection
            best = np.maximum(best, intersection / union)
    return best


def _anchor_generator(cfg: CfgNode) -> tuple[DefaultAnchorGenerator, int]:
    """The config's anchor generator, and its backbone's `size_divisibility`."""
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    head = cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.RPN
    shapes = backbone.output_shape()
    generator = build_anchor_generator(cfg, [shapes[name] for name in head.IN_FEATURES])
    if not isinstance(generator, DefaultAnchorGenerator):
        problem = f"MODEL.ANCHOR_GENERATOR.NAME: {cfg.MODEL.ANCHOR_GENERATOR.NAME} is not supported"
        raise UserError(
            "config.unsupported_anchors", f"{problem}; give the config of a detector with DefaultAnchorGenerator"
        )
    return generator, backbone.size_divisibility
