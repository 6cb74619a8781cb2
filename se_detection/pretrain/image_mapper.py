"""Reads and augments an image of an image folder with timm's transforms."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, ImageOps
from timm.data import create_transform

from ..data.image_files import reason, refuse_postscript
from ..errors import UserError


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
        try:
            refuse_postscript(item["file_name"])
            with Image.open(item["file_name"]) as image:
                # detectron2 applies the EXIF orientation too.
                upright = ImageOps.exif_transpose(image).convert("RGB")
                # Not a tensor: workers share each tensor by an open file, too many for a large batch.
                pixels: Any = np.asarray(self.transform(upright))
        except Exception as error:  # of any class: see `data.image_files.decode`
            name = item["file_name"]
            raise UserError(f"image {name} can't be used: {reason(error)}; fix or remove it") from error
        return {**item, "image": pixels}
