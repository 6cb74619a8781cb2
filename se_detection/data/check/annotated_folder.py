"""An annotation file together with the folder of its images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ..coco_format import ANNOTATION, IMAGE, Content, Entry, read_coco, usable
from ..image_files import ImageFile, Undecodable, inspect_image, map_files

# By `file_name`; None if there is no such file.
DecodedImages = dict[str, ImageFile | Undecodable | None]


class AnnotatedFolder(NamedTuple):
    """Annotations, and the folder that their images' `file_name` is relative to (None if unknown)."""

    json_file: Path
    image_root: Path | None
    content: Content

    def images(self) -> Iterator[tuple[int, Entry]]:
        """Index and entry of each image with a valid `file_name`."""
        for index, image in enumerate(self.content["images"]):
            if usable(image, IMAGE, "file_name"):
                yield index, image

    def boxes(self) -> list[tuple[Entry, Entry]]:
        """The annotations with a valid box in an image of known size, each with its image's entry."""
        images = {image["id"]: image for image in self.content["images"] if usable(image, IMAGE, *IMAGE)}
        return [
            (annotation, images[annotation["image_id"]])
            for annotation in self.content["annotations"]
            if usable(annotation, ANNOTATION, "image_id", "bbox") and annotation["image_id"] in images
        ]

    def files(self) -> dict[str, Path]:
        """The paths of the existing image files, by `file_name`."""
        if self.image_root is None:
            return {}
        paths = {image["file_name"]: self.image_root / image["file_name"] for _, image in self.images()}
        return {name: path for name, path in paths.items() if os.path.isfile(path)}


def read_annotated_folder(json_file: Path, image_root: Path | None) -> AnnotatedFolder:
    """Reads an annotation file.

    Raises:
        UserError: the file can't be read, or `image_root` is not a folder.
    """
    if image_root is not None and not image_root.is_dir():
        raise UserError(f"{image_root}: not a folder; give the one that holds the images of {json_file}")
    return AnnotatedFolder(json_file, image_root, read_coco(json_file))


def read_annotated_folders(paths: Sequence[Path]) -> list[AnnotatedFolder]:
    """Reads annotation files, each optionally followed by the folder of its images.

    Raises:
        UserError: as :func:`read_annotated_folder`, or a folder does not follow a file.
    """
    pairs: list[tuple[Path, Path | None]] = []
    for path in paths:
        if not path.is_dir():
            pairs.append((path, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], path)
        else:
            raise UserError(f"{path}: a folder; give it after the annotation file whose images it holds")
    return [read_annotated_folder(*pair) for pair in pairs]


def decode_images(annotated: AnnotatedFolder) -> DecodedImages:
    """Decodes all images of an annotated folder (not None), with a progress bar if there are many."""
    assert annotated.image_root is not None
    names = list(dict.fromkeys(image["file_name"] for _, image in annotated.images()))
    return dict(zip(names, map_files(inspect_image, [annotated.image_root / name for name in names]), strict=True))
