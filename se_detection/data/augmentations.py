"""Augmentations that detectron2 has in lazy configs only, or not at all, by keys of `INPUT`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torchvision.transforms import RandomErasing as ErasedRectangle

from ..errors import UserError
from .pixel_transforms import PixelTransforms, load_pipeline


def augmentations(cfg: CfgNode, theirs: Sequence[T.Augmentation]) -> list[T.Augmentation]:
    """detectron2's augmentations of training images, changed by `LARGE_SCALE_JITTER` and other keys.

    Large-scale jitter takes the place of the resizing to `MIN_SIZE_TRAIN`. `ALBUMENTATIONS` and then `RANDOM_ERASING`
    come last.

    Args:
        theirs: from detectron2's `DatasetMapper.from_config`.
    """
    changed: list[T.Augmentation] = []
    for augmentation in theirs:
        if cfg.INPUT.LARGE_SCALE_JITTER.ENABLED and isinstance(augmentation, T.ResizeShortestEdge):
            changed += large_scale_jitter(cfg)
        else:
            changed.append(augmentation)
    if cfg.INPUT.ALBUMENTATIONS:
        changed.append(PixelTransforms(cfg.INPUT.ALBUMENTATIONS, cfg.INPUT.FORMAT))
    erasing = cfg.INPUT.RANDOM_ERASING
    if erasing.PROB > 0:
        changed.append(RandomErasing(erasing.PROB, erasing.AREA, erasing.ASPECT_RATIO, cfg.MODEL.PIXEL_MEAN))
    return changed


def large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Resizing by a random factor, then a random crop or padding to one size, as in detectron2's `new_baselines`.

    The image is fitted into `SIZE` (height, width) times a factor from `MIN_SCALE` to `MAX_SCALE`. See Ghiasi et al.,
    Simple Copy-Paste, CVPR 2021.
    """
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    height, width = jitter.SIZE
    return [T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, height, width), T.FixedSizeCrop((height, width))]


class RandomErasing(T.Augmentation):
    """Fills a random rectangle with one color; boxes, masks and keypoints stay (Zhong et al., AAAI 2020; Cutout).

    The rectangle is chosen as by torchvision's `RandomErasing`.

    Args:
        prob: the probability of a rectangle in an image.
        area: the least and the largest area, as a share of the image's.
        aspect_ratio: the least and the largest height / width.
        value: the color, a value for each channel.
    """

    def __init__(
        self, prob: float, area: Sequence[float], aspect_ratio: Sequence[float], value: Sequence[float]
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The rectangle for an image (H, W, C)."""
        if self._rand_range() >= self.prob:
            return T.NoOpTransform()
        # torchvision reads the size alone.
        shaped = torch.empty(()).expand(1, *image.shape[:2])
        y, x, height, width, _ = ErasedRectangle.get_params(shaped, self.area, self.aspect_ratio, [0.0])
        if (height, width) == image.shape[:2]:
            # No rectangle of this area and shape fits into the image.
            return T.NoOpTransform()
        return EraseTransform(x, y, width, height, self.value)


class EraseTransform(T.Transform):
    """Fills a rectangle of an image with one color, and changes nothing else.

    Args:
        x, y, width, height: in pixels.
        value: the color, a value for each channel.
    """

    def __init__(self, x: int, y: int, width: int, height: int, value: Sequence[float]) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """A copy of the image (H, W, C) with the rectangle."""
        erased = img.copy()
        value = np.asarray(self.value)
        color = value.round() if np.issubdtype(img.dtype, np.integer) else value
        erased[self.y : self.y + self.height, self.x : self.x + self.width] = color.astype(img.dtype)
        return erased

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """The coordinates, unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The mask, unchanged."""
        return segmentation


def check_augmentations(cfg: CfgNode) -> None:
    """Checks the values of `INPUT.LARGE_SCALE_JITTER`, `RANDOM_ERASING` and `ALBUMENTATIONS`.

    Raises:
        UserError: a value is outside of its range, or the pipeline can't be used.
    """
    if cfg.INPUT.ALBUMENTATIONS:
        load_pipeline(cfg.INPUT.ALBUMENTATIONS)
    jitter, erasing = cfg.INPUT.LARGE_SCALE_JITTER, cfg.INPUT.RANDOM_ERASING
    for key, value, needed, right in (
        ("LARGE_SCALE_JITTER.SIZE", jitter.SIZE, "a height and a width in pixels", _are_sizes(jitter.SIZE)),
        (
            "LARGE_SCALE_JITTER.MIN_SCALE",
            jitter.MIN_SCALE,
            f"above 0 and at most MAX_SCALE, {jitter.MAX_SCALE}",
            0 < jitter.MIN_SCALE <= jitter.MAX_SCALE,
        ),
        ("RANDOM_ERASING.PROB", erasing.PROB, "from 0 to 1", 0 <= erasing.PROB <= 1),
        (
            "RANDOM_ERASING.AREA",
            erasing.AREA,
            "two shares of the image, 0 < least <= most <= 1",
            _is_range(erasing.AREA, 1),
        ),
        (
            "RANDOM_ERASING.ASPECT_RATIO",
            erasing.ASPECT_RATIO,
            "two numbers, 0 < least <= most",
            _is_range(erasing.ASPECT_RATIO),
        ),
    ):
        if not right:
            shown = list(value) if isinstance(value, list | tuple) else value
            raise UserError("config.bad_value", f"INPUT.{key}: {shown} must be {needed}")


def _are_sizes(values: Sequence[Any]) -> bool:
    return len(values) == 2 and all(isinstance(value, int) and value > 0 for value in values)


def _is_range(values: Sequence[Any], most: float = float("inf")) -> bool:
    numbers = len(values) == 2 and all(isinstance(value, int | float) for value in values)
    return numbers and 0 < values[0] <= values[1] <= most
