"""Compares the outputs of an exported detector with those of the original."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from .graph import tensor_of
from .metadata import FIELDS

# Detections are the same object from this IoU on.
SAME_OBJECT = 0.5
# Each image is compared at its test size, smaller, larger, and with height and width swapped.
SCALES = (1.0, 0.75, 1.25)


@dataclass
class OutputDifference:
    """The largest differences over several images, each at several sizes.

    Args:
        images: number of images, each size counted.
        detections: number of detections of the original.
        unpaired: number of detections of either detector without a counterpart (IoU of 0.5 or more, same class).
        worst: largest difference by output: of boxes and keypoints in pixels, of scores and masks from 0 to 1, of
            feature maps relative to the map's largest value.
    """

    images: int = 0
    detections: int = 0
    unpaired: int = 0
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, difference: Tensor) -> None:
        """Updates `worst`; NaN counts as infinite."""
        largest = difference.abs().max().item() if difference.numel() else 0.0
        self.worst[name] = max(self.worst.get(name, 0.0), largest if largest == largest else float("inf"))


def resized_copies(image: Tensor) -> Iterator[Tensor]:
    """(3, H, W) of uint8 at several sizes; in the last copy H and W are swapped."""
    height, width = image.shape[1:]
    for scale in SCALES:
        size = (round(height * scale), round(width * scale))
        yield image if scale == 1 else F.interpolate(image[None].float(), size, mode="bilinear")[0].round().byte()
    yield image.transpose(1, 2).contiguous()


def compare_detections(
    original: Callable[[Tensor], Instances], exported: Callable[[Tensor], Instances], images: Sequence[Tensor]
) -> OutputDifference:
    """Runs both detectors on each image, (3, H, W) of uint8, at several sizes, on a GPU without TF32."""
    result = OutputDifference()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for image in itertools.chain.from_iterable(map(resized_copies, images)):
            expected, actual = original(image).to("cpu"), exported(image).to("cpu")
            pairs = pair_detections(expected, actual)
            result.images += 1
            result.detections += len(expected)
            result.unpaired += len(expected) + len(actual) - 2 * len(pairs)
            first, second = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
            for name, field_name in FIELDS.items():
                if name != "classes" and expected.has(field_name):
                    ours, theirs = (tensor_of(it.get(field_name)) for it in (expected, actual))
                    result.add(name, ours[first] - theirs[second])
    return result


def compare_maps(
    original: Callable[[Tensor], dict[str, Tensor]],
    exported: Callable[[Tensor], dict[str, Tensor]],
    batches: Sequence[Tensor],
) -> OutputDifference:
    """Runs both backbones on batches: (N, 3, H, W), normalized and padded; on a GPU without TF32."""
    result = OutputDifference()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for batch in batches:
            expected, actual = original(batch), exported(batch)
            result.images += len(batch)
            for name, values in expected.items():
                result.add(name, (values - actual[name]) / values.abs().max())
    return result


def pair_detections(first: Instances, second: Instances) -> list[tuple[int, int]]:
    """Pairs detections of the same class with an IoU of 0.5 or more, greedily by the score in `first`.

    Args:
        first: with `pred_boxes`, `pred_classes` and `scores`.
        second: the same fields, for the same image in the same pixels.

    Returns:
        Pairs of indices into `first` and `second`; each index is in at most one pair.
    """
    overlap = pairwise_iou(first.pred_boxes, second.pred_boxes)
    overlap[first.pred_classes[:, None] != second.pred_classes[None]] = 0
    pairs = []
    for index in first.scores.argsort(descending=True, stable=True).tolist():
        if not len(second) or overlap[index].max() < SAME_OBJECT:
            continue
        other = int(overlap[index].argmax())
        overlap[:, other] = 0
        pairs.append((index, other))
    return pairs
