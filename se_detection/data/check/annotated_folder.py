"""An annotation file together with the folder of its images."""

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ..coco_format import ANNOTATION, IMAGE, Content, Entry, encoding, read_coco, usable
from ..data_folder import FolderPart
from ..file_names import find_renamed
from ..image_files import ImageFile, inspect_image, map_files
from ..read_folder import find_data
from .boxes import CornerBox, Size

# The results of `inspect_image`, by `file_name`.
DecodedImages = dict[str, ImageFile | str | None]


class Box(NamedTuple):
    """A valid box in an image of known size, and the entries of both."""

    box: CornerBox
    size: Size
    annotation: Entry
    image: Entry


class AnnotatedFolder(NamedTuple):
    """Annotations, and the folder that their images' `file_name` is relative to (None if unknown)."""

    json_file: Path
    image_root: Path | None
    content: Content
    encoding: str = "utf-8"

    def images(self) -> Iterator[tuple[int, Entry]]:
        """Index and entry of each image with a valid `file_name`."""
        return ((at, entry) for at, entry in enumerate(self.content["images"]) if usable(entry, IMAGE, "file_name"))

    def renamed(self) -> dict[str, str]:
        """The files of missing images that are in the folder under another name, by `file_name`."""
        entries = (entry for entry in self.content["images"] if isinstance(entry, dict))
        names = {name for entry in entries if isinstance(name := entry.get("file_name"), str)}
        return find_renamed(self.image_root, names) if self.image_root else {}

    def boxes(self) -> list[Box]:
        """The valid boxes in images of known size."""
        images = {image["id"]: image for image in self.content["images"] if usable(image, IMAGE, *IMAGE)}
        return [
            Box(entry["bbox"], image_size(images[entry["image_id"]]), entry, images[entry["image_id"]])
            for entry in self.content["annotations"]
            if usable(entry, ANNOTATION, "image_id", "bbox") and entry["image_id"] in images
        ]

    def files(self) -> dict[str, Path]:
        """The paths of the existing image files, by `file_name`."""
        if self.image_root is None:
            return {}
        paths = {image["file_name"]: self.image_root / image["file_name"] for _, image in self.images()}
        return {name: path for name, path in paths.items() if os.path.isfile(path)}


def image_size(image: Entry) -> Size:
    """Width and height as annotated."""
    return image["width"], image["height"]


def read_annotated_folder(json_file: Path, image_root: Path) -> AnnotatedFolder:
    """Reads an annotation file.

    Raises:
        UserError: the file can't be read, or `image_root` is not a folder.
    """
    if not image_root.is_dir():
        raise UserError("data.no_folder", f"{image_root}: not a folder; give the one with the images of {json_file}")
    return AnnotatedFolder(json_file, image_root, read_coco(json_file), encoding(json_file))


def read_annotated_folders(paths: Sequence[Path]) -> list[AnnotatedFolder]:
    """Reads annotation files, each optionally followed by the folder of its images.

    Raises:
        UserError: a file can't be read, or a folder does not follow a file.
    """
    folders: list[AnnotatedFolder] = []
    for path in paths:
        if not path.is_dir():
            folders.append(AnnotatedFolder(path, None, read_coco(path)))
        elif folders and folders[-1].image_root is None:
            folders[-1] = folders[-1]._replace(image_root=path)
        else:
            raise UserError("data.no_json", f"{path}: a folder; give it after the annotations whose images it holds")
    return folders


def read_annotated(args: Namespace) -> tuple[AnnotatedFolder, list[AnnotatedFolder]]:
    """The data set of a command line of `se-det check-data`, and those to compare it with.

    Raises:
        UserError: one can't be read.
    """
    others = read_annotated_folders(args.against)
    if args.json_file:
        return read_annotated_folder(args.json_file, args.images), others
    given = [(split, Path(path)) for split in ("train", "val") if (path := vars(args)[f"{split}_data"])]
    split, path = given[0]
    folder = find_data(path)
    if split == "train" and len(given) == 1 and folder.is_divided:
        given.append(("val", path))
    others += [_of_part(find_data(path).read(split), split) for split, path in given[1:]]
    return _of_part(folder.read(split), split), others


def _of_part(part: FolderPart, split: str) -> AnnotatedFolder:
    if part.source.suffix == ".json":
        return AnnotatedFolder(part.source, part.image_root, part.content, encoding(part.source))
    # Both parts have the same source.
    return AnnotatedFolder(Path(f"{part.source} ({split})"), part.image_root, part.content)


def decode_images(annotated: AnnotatedFolder) -> DecodedImages:
    """Decodes all images of an annotated folder (not None), under their right names too.

    A progress bar is shown if there are many.
    """
    assert annotated.image_root is not None
    stated = (image["file_name"] for _, image in annotated.images())
    names = list(dict.fromkeys([*stated, *annotated.renamed().values()]))
    return dict(zip(names, map_files(inspect_image, [annotated.image_root / name for name in names]), strict=True))
