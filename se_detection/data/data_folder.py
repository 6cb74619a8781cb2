"""Folders of images with annotations in COCO's, YOLO's or Pascal VOC's format, as annotation programs write them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .coco_format import Content
from .image_files import map_files, read_size, reason

# The parts of a data set, by the words that name them in file names.
PARTS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
# The parts that serve as a split, the first that exists; the last is a folder that is not divided.
SERVING = {"train": ("train", ""), "val": ("val", "test", "")}


class FolderPart(NamedTuple):
    """Annotations, and the folder of their images.

    Args:
        source: the file or folder with the annotations.
        image_root: the folder that the images' `file_name` is relative to.
        content: the annotations in COCO's format.
    """

    source: Path
    image_root: Path
    content: Content


class DataFolder(NamedTuple):
    """A folder with annotations of one format.

    Args:
        folder: the folder.
        kind: its format: `COCO`, `YOLO` or `Pascal VOC`.
        parts: functions that read the parts: `train`, `val`, `test`; an empty name if it is not divided.
    """

    folder: Path
    kind: str
    parts: Mapping[str, Callable[[], FolderPart]]

    def part(self, split: str) -> str | None:
        """The part that serves as `train` or `val`; None without one."""
        return next((name for name in SERVING[split] if name in self.parts), None)

    @property
    def is_divided(self) -> bool:
        """Whether it has a part to train on and another to evaluate on."""
        return self.part("train") == "train" and self.part("val") in ("val", "test")

    def read(self, split: str) -> FolderPart:
        """Reads the part that serves as `train` or `val`.

        Raises:
            UserError: it is missing, or its annotations can't be read.
        """
        if (name := self.part(split)) is None:
            found = " and ".join(sorted(self.parts))
            raise UserError(
                "data.no_part", f"{self.folder}: there is no part {split}, only {found}; give another folder"
            )
        return self.parts[name]()


def part_of(name: str) -> str:
    """The part that a file or folder name means, such as `instances_train2017`; empty if it means none."""
    return next((PARTS[word] for word in re.findall("[a-z]+", name.lower()) if word in PARTS), "")


def common_root(images: Sequence[Path]) -> Path:
    """The folder that holds all images."""
    first, *others = {image.parent for image in images}
    return next(root for root in (first, *first.parents) if all(folder.is_relative_to(root) for folder in others))


def image_sizes(images: Sequence[Path]) -> list[tuple[int, int]]:
    """Width and height of images, after their EXIF rotation.

    Raises:
        UserError: an image can't be read.
    """
    sizes = []
    for path, found in zip(images, map_files(_size, images, "reading image sizes"), strict=True):
        if isinstance(found, str):
            raise UserError("data.bad_image", f"{path} cannot be read ({found}); correct, replace or remove it")
        sizes.append(found)
    return sizes


def _size(path: Path) -> tuple[int, int] | str:
    try:
        return read_size(path)[:2]
    except Exception as error:  # of any class, see `decode`
        return reason(error)
