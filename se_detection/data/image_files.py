"""Image files as detectron2 would find them: missing, undecodable, or an image of some size."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import EpsImagePlugin, ExifTags, Image
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")

# PostScript is a program, which Pillow has Ghostscript run where it finds some, whatever the file's name ends with.
EpsImagePlugin.gs_binary = False

SHOW_PROGRESS_FROM = 2000
MAX_THREADS = 8
QUARTER_TURNS = (5, 6, 7, 8)
# Pillow's modes of one channel that is cut off at 255 where it is made a colour.
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class ImageFile(NamedTuple):
    """Width and height in pixels as detectron2's `read_image` finds them; `turned`: EXIF swaps the file's own."""

    width: int
    height: int
    turned: bool


class Undecodable(NamedTuple):
    """Why a file can't be decoded, in one line."""

    reason: str


def decode(path: str | Path) -> ImageFile:
    """Decodes all of a file's data.

    What is larger than twice `Image.MAX_IMAGE_PIXELS`, 179 million pixels, Pillow refuses by the file's header.

    Raises:
        Exception: of any class; Pillow's decoders pass on whatever broken data makes them stumble over.
    """
    with Image.open(path) as image:
        width, height = image.size
        orientation = None
        with contextlib.suppress(Exception):  # detectron2 reads an image with broken EXIF data as if it had none
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        image.draft("RGB", (1, 1))  # a JPEG is decoded to an eighth of its size: half the time, the same data read
        image.load()
        # Some kinds of pixels can't be made colours.
        image.crop((0, 0, 1, 1)).convert("RGB")
        refuse_deep(image)
    if orientation in QUARTER_TURNS:
        return ImageFile(height, width, turned=True)
    return ImageFile(width, height, turned=False)


def refuse_deep(image: Image.Image) -> None:
    """Whether an image loses nothing where detectron2 makes it a colour of 8 bits.

    Raises:
        ValueError: it does.
    """
    if image.mode in DEEP and np.max(image.getextrema()) > 255:
        raise ValueError(f"pixels above 255 (mode {image.mode}), which all become white; save it with 8 bits")


def look_at(path: str | Path) -> ImageFile | Undecodable | None:
    """What lies at a path; None where nothing does."""
    if not os.path.isfile(path):
        return None
    try:
        return decode(path)
    except Exception as error:  # see `decode`
        return Undecodable(reason(error))


def reason(error: BaseException) -> str:
    """Why a file can't be decoded, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def map_files(function: Callable[[T], R], items: Sequence[T], what: str = "checking images") -> list[R]:
    """`function` of every item, on several threads, with a progress bar where there are many.

    The first exception is raised at once: what has not been started then is left undone.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        done = pool.map(function, items)
        return list(tqdm(done, what, len(items), disable=len(items) <= SHOW_PROGRESS_FROM))


class BadImage(NamedTuple):
    """An image file that is missing, can't be decoded, or has another size than is annotated.

    Args:
        file_name: its path, as detectron2 gets it.
        width, height: as annotated, in pixels; None where they aren't.
        reason: in one line.
        iteration: in which it was found; None: before training.
    """

    file_name: str
    width: int | None
    height: int | None
    reason: str
    iteration: int | None = None

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """What it is known by: one file may be annotated with a right and a wrong size."""
        return self[:3]


def image_key(item: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """:attr:`BadImage.key` of a dictionary in detectron2's format."""
    return item["file_name"], item.get("width"), item.get("height")
