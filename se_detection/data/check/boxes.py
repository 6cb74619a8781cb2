"""Compares boxes with their image: inside it, sticking out, outside, empty, or in another notation than COCO's."""

from collections.abc import Sequence
from typing import Literal

# (x, y, width, height), as in COCO's files.
CornerBox = Sequence[float]
# (width, height)
Size = tuple[int, int]
Place = Literal["inside", "sticking out", "outside", "empty"]

# detectron2 drops a box as empty if a side is not longer than this (pixels).
EMPTY = 1e-5
# COCO rounds x, y, width and height to 0.01 pixels each.
ROUNDING = 0.02
# Another notation needs at least this many boxes, and at most this share of exceptions.
EVIDENCE, EXCEPTIONS = 10, 0.05


def clip(box: CornerBox, size: Size) -> list[float]:
    """Clips a box to its image; a box outside gets a side of 0, and a box inside is not changed."""
    clipped = list(box)
    for axis, limit in enumerate(size):
        low, length = box[axis], box[axis + 2]
        if low < 0 or low + length > limit:
            start, end = (min(max(edge, 0), limit) for edge in (low, low + length))
            clipped[axis], clipped[axis + 2] = start, end - start
    return clipped


def place(box: CornerBox, size: Size) -> Place:
    """Where a box lies in an image of this size; detectron2 drops empty boxes, and those outside."""
    if min(box[2:]) <= EMPTY:
        return "empty"
    if min(clip(box, size)[2:]) <= EMPTY:
        return "outside"
    return "inside" if overhang(box, size) <= ROUNDING else "sticking out"


def overhang(box: CornerBox, size: Size) -> float:
    """How far a box extends beyond its image, in pixels; 0 or less if it is inside."""
    x, y, width, height = map(float, box)
    return max(-x, -y, x + width - size[0], y + height - size[1])


def suspected_notation(boxes: Sequence[tuple[CornerBox, Size]]) -> str | None:
    """The notation of a file's boxes if it does not seem to be COCO's: almost all boxes fit it, and few fit COCO's.

    Args:
        boxes: the boxes, each with its image's size.
    """
    if len(boxes) < EVIDENCE:
        return None
    needed = (1 - EXCEPTIONS) * len(boxes)
    if sum(0 <= min(box) and max(box) <= 1 for box, _ in boxes) >= needed:
        return "fractions of the image's width and height"
    sticking_out = sum(overhang(box, size) > 1 for box, size in boxes)
    corners = sum(0 <= box[0] <= box[2] <= size[0] + 1 and 0 <= box[1] <= box[3] <= size[1] + 1 for box, size in boxes)
    return "(x1, y1, x2, y2)" if sticking_out > len(boxes) / 2 and corners >= needed else None
