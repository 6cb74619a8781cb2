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
ORDERS = ("BGR", "RGB")


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
                f"an array of shape {given.shape} and type {given.dtype} is not an image; give (height, width, 3) "
                "of uint8, and several images as a list"
            )
        return given if order == array_order else given[:, :, ::-1]
    if isinstance(given, Image.Image):
        return _decode(given, f"the {type(given).__name__}", order)
    if not isinstance(given, str | Path):
        raise UserError(f"{type(given).__name__} is not an image type; give a numpy array, a PIL image or a path")
    # Opening a pipe would block.
    if not os.path.isfile(given):
        raise UserError(f"{given}: no such file")
    try:
        refuse_postscript(given)
        image = Image.open(given)
    except Exception as error:  # of any class, see `image_files.decode`
        raise UserError(f"{given} can't be used: {reason(error)}; fix or skip it") from error
    with image:
        return _decode(image, str(given), order)


def _decode(image: Image.Image, name: str, order: str) -> NDArray[np.uint8]:
    try:
        refuse_deep(image)
        array: Any = convert_PIL_to_numpy(_apply_exif_orientation(image), order)
    except Exception as error:  # of any class, see `image_files.decode`
        raise UserError(f"{name} can't be used: {reason(error)}; fix or skip it") from error
    if not array.size:
        raise UserError(f"{name} has no pixels")
    return array
