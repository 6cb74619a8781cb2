"""The inputs of a command line: images, folders, patterns, videos or a camera; and the unreadable files among them."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ..data.image_files import describe_skipped, image_formats, inspect_image, is_image, map_files
from ..errors import UserError
from .video import video_info

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
CAMERA = "camera:"


def find_camera(inputs: Sequence[str]) -> int | None:
    """The number of the camera, or None if the inputs are files.

    Raises:
        UserError: the camera has no number, or is not the only input.
    """
    for name in inputs:
        if name.startswith(CAMERA):
            number = name.removeprefix(CAMERA)
            if not number.isdecimal() or len(inputs) > 1:
                raise UserError(
                    "predict.camera", f"{name}: give one camera with a number, as in {CAMERA}0, and no files"
                )
            return int(number)
    return None


def find_files(inputs: Sequence[str], outside: Path) -> tuple[list[Path], list[Path]]:
    """The absolute paths of all images and videos, without duplicates; and the other files in folders, to be skipped.

    They are in the order of the inputs, and sorted by path within a folder or pattern. A file that is given by itself
    may have any extension. A file in a folder may have none, if it begins as an image.

    Args:
        inputs: files, folders, or patterns such as `photos/**/*.jpg`.
        outside: a folder to skip, here the output folder.

    Raises:
        UserError: an input does not exist, or has no images or videos.
    """
    formats, output = image_formats(), os.path.realpath(outside)
    # Whether each file is taken.
    unique: dict[Path, bool] = {}
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        found = {path: taken for match in matches for path, taken in _files(Path(os.path.abspath(match)), formats)}
        found = {path: found[path] for path in found if not Path(os.path.realpath(path)).is_relative_to(output)}
        if not any(found.values()):
            what = "no images or videos in it" if matches else "no file or folder has this name or matches this pattern"
            skipped = f" ({describe_skipped(list(found))})" if found else ""
            raise UserError("predict.no_files", f"{name}: {what}{skipped}; give images, videos, or folders of them")
        unique |= {path: taken for path, taken in found.items() if not unique.get(path)}
    return [path for path, taken in unique.items() if taken], [path for path, taken in unique.items() if not taken]


def is_video(path: Path) -> bool:
    """Whether a path has the extension of a video."""
    return path.suffix.lower() in VIDEOS


def unreadable(files: Sequence[Path]) -> dict[Path, str]:
    """Decodes every image and the first frame of every video; returns the files that fail, with the reason."""
    reasons = map_files(_reason, files)
    return {file: reason for file, reason in zip(files, reasons, strict=True) if reason}


def _files(path: Path, formats: dict[str, str]) -> list[tuple[Path, bool]]:
    """A file, or the files in a folder, and whether each is an image or video."""
    if not path.is_dir():
        return [(path, True)]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [(file, is_video(file) or is_image(file, formats)) for file in files]


def _reason(path: Path) -> str:
    if not path.is_file():
        return "no such file"
    if is_video(path):
        return "" if video_info(path) else "none of its frames can be decoded"
    image = inspect_image(path)
    return image if isinstance(image, str) else ""
