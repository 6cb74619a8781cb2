"""Checks whether detectron2 can read an image file, and finds its size."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from PIL.ImageFile import StubImageFile
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")
# The name of an image's file, and its width and height.
ImageKey = tuple[str, int | None, int | None]

# The first bytes of a PostScript file, also of one with a preview.
POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")
# Of MPEG, a video, Pillow reads only the size.
NOT_IMAGES = {"EPS", "MPEG"}
MAX_EXTENSIONS = 8
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


class BadImage(NamedTuple):
    """An image of a data set whose file is missing, can't be decoded, or does not have the annotated size.

    `file_name` is the path as in detectron2's dataset dicts, `width` and `height` are as annotated (None if they are
    not), `iteration` is the training iteration that found it (None: found before training).
    """

    file_name: str
    width: int | None
    height: int | None
    reason: str
    iteration: int | None = None

    @property
    def key(self) -> ImageKey:
        """Identifies the image. It includes the size: one file may be annotated with a right and a wrong size."""
        return self[:3]


def image_key(item: dict[str, Any]) -> ImageKey:
    """The :attr:`BadImage.key` of one of detectron2's dataset dicts."""
    return item["file_name"], item.get("width"), item.get("height")


def image_formats() -> dict[str, str]:
    """Pillow's name of each format that it decodes, except PostScript, by file extension, such as `.jpg`."""
    extensions = Image.registered_extensions()
    decoded = {
        name
        for name, (kind, _) in Image.OPEN.items()
        if not (isinstance(kind, type) and issubclass(kind, StubImageFile))
    }
    # Pillow reads an MPO as a JPEG.
    decoded = (decoded | {"MPO"}) - NOT_IMAGES
    return {extension: name for extension, name in extensions.items() if name in decoded}


def is_image(path: Path, formats: dict[str, str]) -> bool:
    """Whether a file has an extension of these formats or, if it has none at all, begins as an image of them."""
    if not path.is_file():
        return False
    if path.suffix:
        return path.suffix.lower() in formats
    try:
        with Image.open(path, formats=[name for name in Image.OPEN if name in formats.values()]):
            return True
    except Exception:  # see `decode`
        return False


def describe_skipped(paths: Sequence[Path]) -> str:
    """One line with the number and the extensions of files that are not images."""
    counts = Counter(path.suffix.lower() or "none" for path in paths).most_common()
    extensions = ", ".join(f"{extension} {count}" for extension, count in counts[:MAX_EXTENSIONS])
    more = ", ..." if len(counts) > MAX_EXTENSIONS else ""
    return f"files skipped because of their extension: {len(paths)} ({extensions}{more})"


def inspect_image(path: str | Path) -> ImageFile | str | None:
    """Decodes an image file; returns the reason in one line if that fails, and None if there is no such file."""
    if not os.path.isfile(path):
        return None
    try:
        return decode(path)
    except Exception as error:  # see `decode`
        return reason(error)


def decode(path: str | Path) -> ImageFile:
    """Decodes all of a file's data; Pillow's decoders raise exceptions of any class for broken data.

    Pillow refuses images of more than twice `Image.MAX_IMAGE_PIXELS` (179 million pixels) after reading the header.
    """
    refuse_postscript(path)
    with Image.open(path) as image:
        size = _upright(image)
        image.draft("RGB", (1, 1))  # decode a JPEG at 1/8 size: all data is read, in half the time
        image.load()
        # Some modes can't be converted to RGB.
        image.crop((0, 0, 1, 1)).convert("RGB")
        refuse_deep(image)
    return size


def read_size(path: str | Path) -> ImageFile:
    """The size in an image's header, which Pillow's decoders read with exceptions of any class for broken data."""
    refuse_postscript(path)
    with Image.open(path) as image:
        return _upright(image)


def _upright(image: Image.Image) -> ImageFile:
    width, height = image.size
    orientation = None
    with contextlib.suppress(Exception):  # detectron2 ignores broken EXIF data
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    turned = orientation in QUARTER_TURNS
    return ImageFile(height, width, turned) if turned else ImageFile(width, height, turned)


def refuse_postscript(path: str | Path) -> None:
    """Raises a ValueError for a PostScript file with any suffix: it is a program, which Pillow would run."""
    with PathManager.open(str(path), "rb") as file:
        if file.read(4).startswith(POSTSCRIPT):
            raise ValueError("PostScript is not supported; convert it to PNG or JPEG")


def refuse_deep(image: Image.Image) -> None:
    """Raises a ValueError for an image with pixels above 255, which detectron2 would clip."""
    if image.mode in DEEP and np.max(image.getextrema()) > 255:
        raise ValueError(f"pixels above 255 (mode {image.mode}), which all become white; save it with 8 bits")


def reason(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def map_files(function: Callable[[T], R], items: Sequence[T], what: str = "checking images") -> Iterator[R]:
    """Yields `function` of every item in order, from several threads; with a progress bar if there are many items.

    After an exception, or if the results are no longer wanted, items that have not been started are skipped.
    """
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    # None: on a terminal only.
    few = True if len(items) <= SHOW_PROGRESS_FROM else None
    try:
        yield from tqdm(pool.map(function, items), what, len(items), disable=few)
    finally:
        pool.shutdown(cancel_futures=True)
