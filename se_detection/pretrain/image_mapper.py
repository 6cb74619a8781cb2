"""One image of an image folder as timm's transforms make it."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, ImageOps
from timm.data import create_transform

from ..data.image_files import reason
from ..errors import UserError


class ImageMapper:
    """Reads an image, and crops, flips and augments it for training, or resizes and crops its centre.

    What it gives has `image`, (3, H, W) in RGB from 0 to 255, and `label`.

    Args:
        cfg: with `PRETRAIN`.
        is_train: whether to augment.
    """

    def __init__(self, cfg: CfgNode, is_train: bool) -> None:
        recipe = cfg.PRETRAIN
        # The values stay whole numbers: the classifier subtracts the config's mean, in the config's channel order.
        if is_train:
            self.transform = create_transform(
                recipe.TRAIN_SIZE,
                is_training=True,
                scale=tuple(recipe.CROP_SCALE),
                color_jitter=recipe.COLOR_JITTER,
                auto_augment=recipe.AUTO_AUGMENT or None,
                normalize=False,
            )
        else:
            # timm rounds the quotient down: without the half, to a pixel less than asked for.
            crop_pct = recipe.TEST_SIZE / (recipe.TEST_RESIZE + 0.5)
            self.transform = create_transform(recipe.TEST_SIZE, crop_pct=crop_pct, normalize=False)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """See the class.

        Raises:
            UserError: the image can't be read.
        """
        try:
            with Image.open(item["file_name"]) as image:
                # Turned as its EXIF data says, as detectors see it.
                turned = ImageOps.exif_transpose(image).convert("RGB")
                # Not a tensor: a large batch of those would need more open files than a process may have.
                pixels: Any = np.asarray(self.transform(turned))
        except Exception as error:  # of any class: see `data.image_files.decode`
            name = item["file_name"]
            raise UserError(f"image {name} can't be used: {reason(error)}; mend or remove it") from error
        return {**item, "image": pixels}
