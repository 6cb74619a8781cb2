"""The inputs of a command line: images, folders, patterns, videos or a camera; and the unreadable files among them."""

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
    """The number of the camera, or None if the inputs are files.

    Raises:
        UserError: the camera has no number, or is not the only input.
    """
    cameras = [name for name in inputs if name.startswith(CAMERA)]
    if not cameras:
        return None
    number = cameras[0].removeprefix(CAMERA)
    if not number.isdecimal():
        raise UserError(f"{cameras[0]}: a camera has a number, as in {CAMERA}0")
    if len(inputs) > 1:
        raise UserError(f"{cameras[0]} is recorded until Ctrl-C, so it must be the only input")
    return int(number)


def find_files(inputs: Sequence[str], outside: Path) -> list[Path]:
    """The absolute paths of all images and videos, without duplicates.

    They are in the order of the inputs, and sorted by name within a folder or pattern. A file that is given by itself
    may have any extension.

    Args:
        inputs: files, folders, or patterns such as `photos/**/*.jpg`.
        outside: a folder to skip, here the output folder.

    Raises:
        UserError: an input does not exist, or has no images or videos.
    """
    unique: dict[Path, None] = {}
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{name}: no such file or folder, and no file matches it as a pattern")
        files = [file for match in matches for file in _files(Path(os.path.abspath(match)))]
        files = [file for file in files if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(outside))]
        if not files:
            raise UserError(f"{name}: no images or videos in it ({', '.join((*IMAGES, *VIDEOS))})")
        unique |= dict.fromkeys(files)
    return list(unique)


def is_video(path: Path) -> bool:
    """Whether a path has the extension of a video."""
    return path.suffix.lower() in VIDEOS


def unreadable(files: Sequence[Path]) -> dict[Path, str]:
    """Decodes every image and the first frame of every video; returns the files that fail, with the reason."""
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
        return "no such file"
    if is_video(path):
        return "" if count_frames(path) is not None else "none of its frames can be decoded"
    image = inspect_image(path)
    if image is None:
        return "no such file"
    return "" if isinstance(image, ImageFile) else image.reason
