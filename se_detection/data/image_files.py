"""Checks whether detectron2 can read an image file, and finds its size."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")

# The first bytes of a PostScript file, also of one with a preview.
POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
SHOW_PROGRESS_FROM = 2000
MAX_THREADS = 8
QUARTER_TURNS = (5, 6, 7, 8)
# Pillow's one-channel modes whose values are clipped at 255 when converted to RGB.
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class ImageFile(NamedTuple):
    """Width and height in pixels, as detectron2's `read_image` returns them; `turned`: EXIF has swapped them."""

    width: int
    height: int
    turned: bool


class Undecodable(NamedTuple):
    """Why a file can't be decoded, in one line."""

    reason: str


class BadImage(NamedTuple):
    """An image of a data set whose file is missing, can't be decoded, or does not have the annotated size.

    Args:
        file_name: the file's path, as in detectron2's dataset dicts.
        width, height: as annotated, in pixels; None if not annotated.
        reason: what is wrong, in one line.
        iteration: the training iteration that found it; None if found before training.
    """

    file_name: str
    width: int | None
    height: int | None
    reason: str
    iteration: int | None = None

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """Identifies the image. It includes the size: one file may be annotated with a right and a wrong size."""
        return self[:3]


def image_key(item: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """The :attr:`BadImage.key` of one of detectron2's dataset dicts."""
    return item["file_name"], item.get("width"), item.get("height")


def inspect_image(path: str | Path) -> ImageFile | Undecodable | None:
    """Decodes an image file; None if there is no such file."""
    if not os.path.isfile(path):
        return None
    try:
        return decode(path)
    except Exception as error:  # see `decode`
        return Undecodable(reason(error))


def decode(path: str | Path) -> ImageFile:
    """Decodes all of a file's data and returns the image's size.

    Pillow refuses images of more than twice `Image.MAX_IMAGE_PIXELS` (179 million pixels) after reading the header.

    Raises:
        Exception: of any class; Pillow's decoders do not wrap the errors that broken data causes.
    """
    refuse_postscript(path)
    with Image.open(path) as image:
        width, height = image.size
        orientation = None
        with contextlib.suppress(Exception):  # detectron2 ignores broken EXIF data
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        image.draft("RGB", (1, 1))  # decode a JPEG at 1/8 size: all data is read, in half the time
        image.load()
        # Some modes can't be converted to RGB.
        image.crop((0, 0, 1, 1)).convert("RGB")
        refuse_deep(image)
    if orientation in QUARTER_TURNS:
        return ImageFile(height, width, turned=True)
    return ImageFile(width, height, turned=False)


def refuse_postscript(path: str | Path) -> None:
    """Refuses a PostScript file with any suffix: it is a program, and Pillow would run it with Ghostscript.

    Raises:
        ValueError: the file is PostScript.
        OSError: it can't be read.
    """
    with PathManager.open(str(path), "rb") as file:
        if file.read(4).startswith(POSTSCRIPT):
            raise ValueError("PostScript is not supported; convert it to PNG or JPEG")


def refuse_deep(image: Image.Image) -> None:
    """Refuses an image that would be clipped when detectron2 converts it to 8-bit RGB.

    Raises:
        ValueError: the image has pixels above 255.
    """
    if image.mode in DEEP and np.max(image.getextrema()) > 255:
        raise ValueError(f"pixels above 255 (mode {image.mode}), which all become white; save it with 8 bits")


def reason(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def map_files(function: Callable[[T], R], items: Sequence[T], what: str = "checking images") -> list[R]:
    """Calls `function` for every item in several threads, with a progress bar if there are many items.

    The first exception is raised at once; items that have not been started are then skipped.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        done = pool.map(function, items)
        return list(tqdm(done, what, len(items), disable=len(items) <= SHOW_PROGRESS_FROM))
