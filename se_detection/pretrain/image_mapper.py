"""Reads and augments an image of an image folder with timm's transforms."""

from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from timm.data import create_transform
from typing_extensions import Self

from ..inference.image_array import image_array


class ImageMapper:
    """Reads an image; crops, flips and augments it for training, or resizes it and crops the centre for testing.

    The result has `image`, a (3, H, W) RGB array of 0 to 255, and `label`.

    Args:
        transform: maps a PIL image to an array (3, H, W).
    """

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform

    @classmethod
    def from_cfg(cls, cfg: CfgNode, *, is_train: bool) -> Self:
        """The mapper that `PRETRAIN` describes; `is_train` is whether to augment."""
        recipe = cfg.PRETRAIN
        # normalize=False: the classifier normalizes, in the config's channel order.
        if is_train:
            transform = create_transform(
                recipe.TRAIN_SIZE,
                is_training=True,
                scale=tuple(recipe.CROP_SCALE),
                color_jitter=recipe.COLOR_JITTER,
                auto_augment=recipe.AUTO_AUGMENT or None,
                normalize=False,
            )
        else:
            # timm rounds TEST_SIZE / crop_pct down: without the 0.5, to a pixel too few.
            crop_pct = recipe.TEST_SIZE / (recipe.TEST_RESIZE + 0.5)
            transform = create_transform(recipe.TEST_SIZE, crop_pct=crop_pct, normalize=False)
        return cls(transform)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Maps an item with `file_name` and `label`.

        Raises:
            UserError: the image can't be read.
        """
        image = Image.fromarray(image_array(item["file_name"], "RGB", "RGB"))
        # Not a tensor: workers share each tensor by an open file, too many for a large batch.
        return {**item, "image": np.asarray(self.transform(image))}
