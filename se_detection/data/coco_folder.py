"""Folders with annotations in COCO's format, as Roboflow, CVAT, Label Studio and labelme export them."""

import os
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..files import read_json
from .coco_format import KINDS, Content, read_coco
from .data_folder import DataFolder, FolderPart, part_of
from .file_names import find_renamed

# COCO's own folder has several files for each part.
INSTANCES = "instances"


def find_coco(folder: Path) -> DataFolder | None:
    """The parts of a folder with COCO JSON files: in it, in `annotations/`, or in a folder for each part; or None.

    Raises:
        UserError: several files are of one part.
    """
    children = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    places = [folder, *(path for path in children if path.name.lower() == "annotations" or part_of(path.name))]
    files = [file for place in places for file in sorted(place.glob("*.json"))]
    chosen = [file for file in files if file.name.startswith(INSTANCES)] or list(filter(_is_coco, files))
    found: dict[str, list[Path]] = {}
    for file in chosen:
        part = part_of(file.stem) or ("" if file.parent == folder else part_of(file.parent.name))
        found.setdefault(part, []).append(file)
    for part, same in found.items():
        if len(same) > 1:
            names = " and ".join(file.name for file in same[:2])
            flag = f"--{part if part == 'train' else 'val'}-json"
            raise UserError("data.several_files", f"{folder}: {names} are both COCO annotations; give one with {flag}")
    parts = {part: partial(_read, folder, file) for part, (file,) in found.items()}
    return DataFolder(folder, "COCO", parts) if parts else None


def _is_coco(file: Path) -> bool:
    try:
        content = read_json(file)
    except UserError:
        return False
    return isinstance(content, dict) and all(isinstance(content.get(kind), list) for kind in KINDS)


def _read(folder: Path, file: Path) -> FolderPart:
    content = read_coco(file)
    return FolderPart(file, _image_root(folder, file, content), content)


def _image_root(folder: Path, file: Path, content: Content) -> Path:
    """The folder in which one of the first images is, under its name or one that stands for it."""
    names = [image.get("file_name") for image in content["images"][:3] if isinstance(image, dict)]
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    part = part_of(file.stem)
    # The images of a part may have the names of another's.
    own = [path for path in children if part and part_of(path.name) == part]
    places = dict.fromkeys([file.parent, *own, folder, *children, *(path / "images" for path in own)])
    for name in (name for name in names if isinstance(name, str)):
        for place in places:
            if os.path.isfile(place / name):
                return place
        for place in places:
            if place.is_dir() and find_renamed(place, [name]):
                return place
    return own[0] if own else file.parent
