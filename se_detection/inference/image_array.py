"""Pictures in memory and in files, as arrays in the channel order that a detector was trained with."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from numpy.typing import NDArray
from PIL import Image

from ..data.image_files import reason, refuse_deep
from ..errors import UserError

ImageInput = NDArray[np.uint8] | Image.Image | str | Path
ORDERS = ("BGR", "RGB")


def picture_array(picture: ImageInput, order: str, array_order: str) -> NDArray[np.uint8]:
    """A picture as detectron2 reads it from a file: turned as EXIF says, grey and palettes made colours, no alpha.

    Args:
        picture: an array, a PIL image, or a path.
        order: `RGB` or `BGR`, of what is returned.
        array_order: of `picture`, if it is an array; an image and a file know theirs.

    Returns:
        An (H, W, 3) array.

    Raises:
        UserError: it is something else, has no pixels, can't be decoded, or has more than 8 bits a channel.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(
                f"an array of shape {picture.shape} and type {picture.dtype} is no picture; give (height, width, 3) "
                "of uint8, and several pictures as a list"
            )
        return picture if order == array_order else picture[:, :, ::-1]
    if isinstance(picture, Image.Image):
        return _decode(picture, f"the {type(picture).__name__}", order)
    if not isinstance(picture, str | Path):
        raise UserError(f"a {type(picture).__name__} is no picture; give a numpy array, a PIL image or a path")
    # Whatever opens a pipe would wait for its other end.
    if not os.path.isfile(picture):
        raise UserError(f"{picture}: there is no such file")
    try:
        image = Image.open(picture)
    except Exception as error:  # of any class: see `image_files.decode`
        raise UserError(f"{picture} can't be used: {reason(error)}; mend it or leave it out") from error
    with image:
        return _decode(image, str(picture), order)


def _decode(image: Image.Image, name: str, order: str) -> NDArray[np.uint8]:
    try:
        refuse_deep(image)
        array: Any = convert_PIL_to_numpy(_apply_exif_orientation(image), order)
    except Exception as error:  # of any class: see `image_files.decode`
        raise UserError(f"{name} can't be used: {reason(error)}; mend it or leave it out") from error
    if not array.size:
        raise UserError(f"{name} has no pixels")
    return array
