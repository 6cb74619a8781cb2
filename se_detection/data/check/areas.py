"""Compares `area` with the box or mask: it decides which objects count as small, medium and large."""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from pycocotools import mask as masks

from ..coco_format import ANNOTATION, EVALUATED_ANNOTATION, Entry, usable
from .boxes import Size

# Without a mask, an area may be that of a mask which the file lacks. COCO's masks fill at least 1.7 % of their boxes.
SMALLEST_SHARE = 0.01
# Areas of another image size: nearly all are the same share of their boxes, and a smaller one than in simple shapes.
EVIDENCE, MOST, SPREAD, LARGEST_SHARE = 10, 0.95, 0.05, 0.45


def wrong_areas(annotations: Sequence[tuple[Entry, Size]]) -> dict[int, float]:
    """The right areas of the annotations that have a wrong one or none, by index: the mask's, or without one the box's.

    Args:
        annotations: annotations with valid boxes, each with its image's size.
    """
    wrong: dict[int, float] = {}
    shares: dict[int, float] = {}
    without_mask = 0
    for index, (annotation, size) in enumerate(annotations):
        width, height = annotation["bbox"][2:]
        box, mask = float(width * height), _mask_area(annotation, size)
        without_mask += mask is None
        area = annotation["area"] if usable(annotation, EVALUATED_ANNOTATION, "area") else math.inf
        if 0.98 * box - 1 <= area <= _largest(annotation):
            continue
        if mask is None and SMALLEST_SHARE * box - 1 <= area < box:
            shares[index] = area / box
        elif mask is None or abs(area - mask) > 0.1 * mask + width + height:
            wrong[index] = box if mask is None else mask
    if len(shares) >= max(EVIDENCE, MOST * without_mask):
        middle = median(shares.values())
        if sum(abs(share - middle) <= SPREAD * middle for share in shares.values()) >= MOST * len(shares):
            boxes = {index: annotations[index][0]["bbox"] for index in shares if middle < LARGEST_SHARE}
            wrong |= {index: float(box[2] * box[3]) for index, box in boxes.items()}
    return wrong


def _largest(annotation: Entry) -> float:
    """The largest plausible area: that of the box, or (width + 1) × (height + 1) as in Pascal VOC, and rounding."""
    width, height = annotation["bbox"][2:]
    return 1.02 * (width + 1) * (height + 1)


def _mask_area(annotation: Entry, size: Size) -> float | None:
    """The area of the mask in pixels; None without a mask that fits the box."""
    mask = annotation.get("segmentation")
    if not mask or not usable(annotation, ANNOTATION, "segmentation"):
        return None
    if isinstance(mask, list):
        area = sum(polygon_area(polygon) for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0)
    elif mask["size"] != [*reversed(size)]:
        return None
    elif isinstance(mask["counts"], list):
        area = sum(mask["counts"][1::2])
    # pycocotools reads beyond the end of a code whose last character announces another one.
    elif not mask["counts"] or (ord(mask["counts"][-1]) - 48) & 0x20:
        return None
    else:
        area = int(masks.area(mask))
    return float(area) if 0 < area <= _largest(annotation) else None


def polygon_area(polygon: Sequence[float]) -> float:
    """The area that a polygon [x0, y0, x1, y1, ...] encloses."""
    x, y = np.asarray(polygon, dtype=np.float64).reshape(-1, 2).T
    with np.errstate(all="ignore"):
        return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
