"""What a command line names: images, folders, patterns, videos, a camera; and what of it can't be read."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.image_files import ImageFile, inspect_image, map_files
from ..errors import UserError
from .video import count_frames

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
CAMERA = "camera:"


def find_camera(inputs: Sequence[str]) -> int | None:
    """The number of the camera that is named, if one is.

    Raises:
        UserError: it has no number, or is not the only input.
    """
    cameras = [name for name in inputs if name.startswith(CAMERA)]
    if not cameras:
        return None
    number = cameras[0].removeprefix(CAMERA)
    if not number.isdecimal():
        raise UserError(f"{cameras[0]}: a camera has a number, as in {CAMERA}0")
    if len(inputs) > 1:
        raise UserError(f"{cameras[0]} goes on until it is stopped (Ctrl-C): give it alone")
    return int(number)


def find_files(inputs: Sequence[str], outside: Path) -> list[Path]:
    """The images and videos that are named, absolute, each once: files, all in folders, and what patterns match.

    Files stay in the order of the inputs, and those of a folder or pattern in that of their names. A file that is named
    itself may have any ending.

    Args:
        inputs: paths, or patterns such as `photos/**/*.jpg`.
        outside: a folder that is passed over, as what is found is drawn there.

    Raises:
        UserError: an input is not there, or has no images.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{name}: there is no such file or folder, and nothing matches it as a pattern")
        files = [file for match in matches for file in _files(Path(os.path.abspath(match)))]
        files = [file for file in files if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(outside))]
        if not files:
            raise UserError(f"{name}: no images or videos in it ({', '.join((*IMAGES, *VIDEOS))})")
        found |= dict.fromkeys(files)
    return list(found)


def is_video(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in VIDEOS


def unreadable(files: Sequence[Path]) -> dict[Path, str]:
    """The reason for each file that can't be read, after decoding every image and each video's first frame."""
    reasons = map_files(_reason, files)
    return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in (*IMAGES, *VIDEOS))


def _reason(path: Path) -> str:
    if not path.is_file():
        return "there is no such file"
    if is_video(path):
        return "" if count_frames(path) is not None else "no frame of it can be decoded"
    found = inspect_image(path)
    if found is None:
        return "there is no such file"
    return "" if isinstance(found, ImageFile) else found.reason
