"""One picture of an image folder as timm's transforms make it."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, ImageOps
from timm.data import create_transform

from ..errors import UserError


class ImageMapper:
    """Reads a picture, and crops, flips and augments it for training, or resizes and crops its centre.

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
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a broken PNG as a SyntaxError
            reason = " ".join(str(error).split())
            raise UserError(f"image {item['file_name']} can't be used: {reason}; mend or remove it") from error
        return {**item, "image": pixels}
