"""How far an exported detector is from the one that it was made of."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from .metadata import FIELDS

# Each image as it is tested, smaller, larger, and turned by 90 degrees.
SCALES = (1.0, 0.75, 1.25)


@dataclass
class OutputDifference:
    """The worst differences over some images at several sizes.

    Args:
        images: how many, each size for itself.
        detections: how many the original found in all of them.
        unpaired: how many detections of either side mean no object (IoU of 0.5, same class) of the other's.
        worst: by output: of boxes and keypoints in pixels, of scores and masks from 0 to 1; of a backbone's maps, of
            the map's largest value.
    """

    images: int = 0
    detections: int = 0
    unpaired: int = 0
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, difference: Tensor) -> None:
        """Takes a difference into account; one that is no number counts as infinite."""
        largest = difference.abs().max().item() if difference.numel() else 0.0
        self.worst[name] = max(self.worst.get(name, 0.0), largest if largest == largest else float("inf"))


def sizes_of(image: Tensor) -> Iterator[Tensor]:
    """(3, H, W) of uint8 at several sizes, H and W swapped in the last."""
    height, width = image.shape[1:]
    for scale in SCALES:
        size = (round(height * scale), round(width * scale))
        yield image if scale == 1 else F.interpolate(image[None].float(), size, mode="bilinear")[0].round().byte()
    yield image.transpose(1, 2).contiguous()


def compare_detections(
    original: Callable[[Tensor], Instances], exported: Callable[[Tensor], Instances], images: Sequence[Tensor]
) -> OutputDifference:
    """Runs both on each image, (3, H, W) of uint8, at several sizes."""
    agreement = OutputDifference()
    with torch.no_grad(), _float32():
        for image in itertools.chain.from_iterable(map(sizes_of, images)):
            expected, found = original(image).to("cpu"), exported(image).to("cpu")
            pairs = pair_detections(expected, found)
            agreement.images += 1
            agreement.detections += len(expected)
            agreement.unpaired += len(expected) + len(found) - 2 * len(pairs)
            first, second = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
            for name, field_name in FIELDS.items():
                if name != "classes" and expected.has(field_name):
                    ours, theirs = (_values(it.get(field_name)) for it in (expected, found))
                    agreement.add(name, ours[first] - theirs[second])
    return agreement


def _float32() -> AbstractContextManager[None]:
    """Within, convolutions in float32 are that on a GPU too, and not TF32, as by default."""
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return context


def _values(values: Any) -> Tensor:
    tensor: Tensor = values.tensor if isinstance(values, Boxes) else values
    return tensor


def compare_maps(
    original: Callable[[Tensor], dict[str, Tensor]],
    exported: Callable[[Tensor], dict[str, Tensor]],
    batches: Sequence[Tensor],
) -> OutputDifference:
    """Runs both backbones on batches of (N, 3, H, W), normalised and padded."""
    agreement = OutputDifference()
    with torch.no_grad(), _float32():
        for batch in batches:
            expected, found = original(batch), exported(batch)
            agreement.images += len(batch)
            for name, values in expected.items():
                agreement.add(name, (values - found[name]) / values.abs().max())
    return agreement


SAME_OBJECT = 0.5


def pair_detections(first: Instances, second: Instances) -> list[tuple[int, int]]:
    """Pairs detections of one class by overlap (IoU of 0.5 or more), those of the first with the highest score first.

    Args:
        first: with `pred_boxes`, `pred_classes` and `scores`.
        second: the same, for the same image in the same pixels.

    Returns:
        places in the first and the second; each is in one pair at most.
    """
    overlap = pairwise_iou(first.pred_boxes, second.pred_boxes)
    overlap[first.pred_classes[:, None] != second.pred_classes[None]] = 0
    pairs = []
    for place in first.scores.argsort(descending=True, stable=True).tolist():
        if not len(second) or overlap[place].max() < SAME_OBJECT:
            continue
        other = int(overlap[place].argmax())
        overlap[:, other] = 0
        pairs.append((place, other))
    return pairs
