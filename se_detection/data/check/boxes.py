"""Boxes against their image: inside it, sticking out, outside, empty, or in another notation than COCO's."""

from collections.abc import Sequence
from enum import Enum

# (x, y, width, height), as in COCO's files.
CornerBox = Sequence[float]
# (width, height)
Size = tuple[int, int]

# detectron2 takes a box for empty, and drops it, where a side is no longer than this (pixels).
EMPTY = 1e-5
# COCO rounds x and width, y and height, to 0.01 pixels each.
ROUNDING = 0.02


class Place(Enum):
    """Where a box lies in its image."""

    INSIDE = "inside"
    STICKING_OUT = "sticking out"
    OUTSIDE = "outside"
    EMPTY = "empty"


class Notation(Enum):
    """What four numbers can mean instead of (x, y, width, height) in pixels."""

    CORNERS = "(x1, y1, x2, y2)"
    SHARES = "shares of the image's width and height"


# Fewer boxes than this, or more exceptions than this share, are no evidence of another notation.
EVIDENCE, EXCEPTIONS = 10, 0.05


def clip(box: CornerBox, size: Size) -> list[float]:
    """The part of a box that lies inside its image; a side of 0 where there is none. Inside, nothing is changed."""
    clipped = list(box)
    for axis, limit in enumerate(size):
        low, length = box[axis], box[axis + 2]
        if low < 0 or low + length > limit:
            start, end = (min(max(edge, 0), limit) for edge in (low, low + length))
            clipped[axis], clipped[axis + 2] = start, end - start
    return clipped


def place(box: CornerBox, size: Size) -> Place:
    """Where a box lies in an image of a size."""
    if is_empty(box):
        return Place.EMPTY
    if is_empty(clip(box, size)):
        return Place.OUTSIDE
    return Place.INSIDE if overhang(box, size) <= ROUNDING else Place.STICKING_OUT


def is_empty(box: CornerBox) -> bool:
    """Whether detectron2 would drop the box."""
    return min(box[2:]) <= EMPTY


def overhang(box: CornerBox, size: Size) -> float:
    """How far a box reaches out of its image, in pixels; at most 0 where it doesn't."""
    x, y, width, height = map(float, box)
    return max(-x, -y, x + width - size[0], y + height - size[1])


def suspected_notation(boxes: Sequence[tuple[CornerBox, Size]]) -> Notation | None:
    """The other notation that the boxes of a file seem to be in: almost all of them fit it, and few fit COCO's.

    Args:
        boxes: each with its image's size.
    """
    if len(boxes) < EVIDENCE:
        return None
    needed = (1 - EXCEPTIONS) * len(boxes)
    if sum(0 <= min(box) and max(box) <= 1 for box, _ in boxes) >= needed:
        return Notation.SHARES
    sticking_out = sum(overhang(box, size) > 1 for box, size in boxes)
    corners = sum(0 <= box[0] <= box[2] <= size[0] + 1 and 0 <= box[1] <= box[3] <= size[1] + 1 for box, size in boxes)
    return Notation.CORNERS if sticking_out > len(boxes) / 2 and corners >= needed else None
