"""Reads images from memory and files as arrays in a detector's channel order."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from numpy.typing import NDArray
from PIL import Image

from ..data.image_files import reason, refuse_deep, refuse_postscript
from ..errors import UserError

ImageInput = NDArray[np.uint8] | Image.Image | str | Path


def image_array(given: ImageInput, order: str, array_order: str) -> NDArray[np.uint8]:
    """Reads an image as detectron2 does: rotated by its EXIF orientation, converted to colour, without alpha.

    Args:
        given: an array, a PIL image, or a path.
        order: `RGB` or `BGR`, the channel order of the result.
        array_order: the channel order of `given` if it is an array.

    Returns:
        An (H, W, 3) array of uint8.

    Raises:
        UserError: `given` is not an image, has no pixels, can't be decoded, or has more than 8 bits per channel.
    """
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            raise UserError(
                "predict.not_an_image",
                f"an array of shape {given.shape} and type {given.dtype} is not an image; give (height, width, 3) "
                "of uint8, and several images as a list",
            )
        return given if order == array_order else given[:, :, ::-1]
    try:
        if isinstance(given, Image.Image):
            array = _decode(given, order)
        else:
            # Opening a pipe would block.
            if not os.path.isfile(given):
                raise ValueError("no such file")
            refuse_postscript(given)
            with Image.open(given) as image:
                array = _decode(image, order)
        if not array.size:
            raise ValueError("it has no pixels")
    except Exception as error:  # of any class, see `image_files.decode`
        name = f"the {type(given).__name__}" if isinstance(given, Image.Image) else given
        raise UserError("data.bad_image", f"{name} can't be used: {reason(error)}; fix or skip it") from error
    return array


def _decode(image: Image.Image, order: str) -> Any:
    refuse_deep(image)
    return convert_PIL_to_numpy(_apply_exif_orientation(image), order)
