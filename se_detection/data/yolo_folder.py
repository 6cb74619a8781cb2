"""Data in YOLO's format: a text file for each image, with a line for each object, and the names of the classes."""

import math
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..config.yaml_file import read_yaml
from ..errors import UserError, counted
from .check.areas import polygon_area
from .coco_format import Content, Entry, is_integer
from .data_folder import DataFolder, FolderPart, common_root, image_sizes, part_of
from .image_files import image_formats, is_image

KEYS = ("train", "val", "test")
# Of Label Studio and labelImg, and of Darknet.
NAME_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
# Coordinates are fractions of the image; rounding may put them this far outside.
SLACK = 0.01


def find_yolo(folder: Path) -> DataFolder | None:
    """The parts of a folder with `data.yaml`, or with a list of classes such as `classes.txt`; None without.

    Raises:
        UserError: such a file is broken.
    """
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda file: (file.stem != "data", file)):
        content = read_yaml(file)
        if isinstance(content, dict) and "names" in content:
            return _of_yaml(file, content)
    for file in (folder / name for name in NAME_FILES):
        if file.is_file():
            names = [line.strip() for line in _lines(file) if line.strip()]
            found = _subfolders(folder) or {"": folder / "images" if (folder / "images").is_dir() else folder}
            read = {part: partial(_read, file, [images], names) for part, images in found.items()}
            return DataFolder(folder, "YOLO", read)
    return None


def _of_yaml(file: Path, content: dict[str, Any]) -> DataFolder:
    names, keypoints = _names(file, content["names"]), 0
    if shape := content.get("kpt_shape"):
        if not isinstance(shape, list) or not all(map(is_integer, shape)):
            raise UserError("data.bad_yaml", f"{file}: kpt_shape {shape!r} is not [points, 2 or 3]; correct it")
        keypoints = math.prod(shape)
    root = file.parent / str(content.get("path") or "")
    roots = [root, file.parent] if os.path.isdir(root) else [file.parent]
    found = {key: content[key] for key in KEYS if content.get(key)}
    if not found:
        found = {part: path.relative_to(file.parent) for part, path in _subfolders(file.parent).items()}
        found = found or {"": "images" if (roots[0] / "images").is_dir() else "."}
    parts = {
        part: partial(
            _read_entries, file, part, entries if isinstance(entries, list) else [entries], roots, names, keypoints
        )
        for part, entries in found.items()
    }
    return DataFolder(file.parent, "YOLO", parts)


def _names(file: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        # In the order of the numbers; a gap would shift those behind it.
        numbers = {str(key): name for key, name in names.items()}
        names = [numbers.get(str(number)) for number in range(len(numbers))]
    if not isinstance(names, list) or not names or None in names:
        raise UserError("data.bad_yaml", f"{file}: names must be a list, or numbered from 0 without gaps; correct it")
    return list(map(str, names))


def _subfolders(folder: Path) -> dict[str, Path]:
    """The image folders of the parts, as in `images/train` and `train/images`, without a file that names them."""
    for parent in (folder / "images", folder):
        children = sorted(parent.iterdir()) if parent.is_dir() else []
        if found := {part_of(path.name): path for path in children if path.is_dir() and part_of(path.name)}:
            return {part: path / "images" if (path / "images").is_dir() else path for part, path in found.items()}
    return {}


def _read_entries(
    file: Path, part: str, entries: list[Any], roots: list[Path], names: list[str], keypoints: int
) -> FolderPart:
    """Reads the folders of images, and the lists of them, that `data.yaml` names for a part."""
    places = []
    for entry in map(str, entries):
        # Roboflow writes ../train/images for the folder train/images next to data.yaml.
        wanted = [root / text for root in roots for text in (entry, entry.removeprefix("../"))]
        if (place := next(filter(os.path.exists, wanted), None)) is None:
            raise UserError("data.no_folder", f"{file}: {part}: there is no {entry}; correct the path")
        places.append(place)
    return _read(file, places, names, keypoints, roots[0])


def _read(file: Path, places: list[Path], names: list[str], keypoints: int = 0, root: Path | None = None) -> FolderPart:
    formats = image_formats()
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            images += sorted(path for path in place.rglob("*") if path.suffix and is_image(path, formats))
        else:
            images += _listed(place, root or place.parent)
    if not images:
        raise UserError("data.no_images", f"{file}: no images in {', '.join(map(str, places))}; correct the path")
    labels = [_label_file(image) for image in images]
    if not any(label.is_file() for label in labels):
        where = f"no label files for {counted(len(images), 'image')}, such as {labels[0]} for {images[0]}"
        raise UserError("data.no_labels", f"{file}: {where}; add them, or correct the path")
    image_root = common_root(images)
    return FolderPart(file, image_root, _content(images, labels, image_root, names, keypoints))


def _listed(file: Path, root: Path) -> Iterator[Path]:
    """The images that a text file lists; CVAT puts `data/` before the paths."""
    for number, line in enumerate(_lines(file), 1):
        if name := line.strip():
            wanted = (file.parent / name, root / name, root / Path(name).relative_to(Path(name).parts[0]))
            if (found := next(filter(os.path.isfile, wanted), None)) is None:
                raise UserError("data.missing_images", f"{file}:{number}: there is no image {name}; correct the list")
            yield found


def _label_file(image: Path) -> Path:
    """The label file of an image: in `labels/` instead of `images/`, or next to it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        label = Path(*parts).with_suffix(".txt")
        if label.is_file() or not image.with_suffix(".txt").is_file():
            return label
    return image.with_suffix(".txt")


def _content(images: Sequence[Path], labels: Sequence[Path], root: Path, names: list[str], keypoints: int) -> Content:
    entries: list[Entry] = []
    annotations: list[Entry] = []
    for image, label, (width, height) in zip(images, labels, image_sizes(images), strict=True):
        name = image.relative_to(root).as_posix()
        entries.append({"id": len(entries) + 1, "file_name": name, "width": width, "height": height})
        for number, line in enumerate(_lines(label) if label.is_file() else [], 1):
            if words := line.split():
                item = _object(f"{label}:{number}", words, (width, height), len(names), keypoints)
                annotations.append({"id": len(annotations) + 1, "image_id": len(entries), **item})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _object(where: str, words: list[str], size: tuple[int, int], classes: int, keypoints: int) -> Entry:
    """An annotation from a line: class, then centre and size of a box, or the points of a polygon, as fractions.

    A box may be followed by a confidence (six words), or by the keypoints of `kpt_shape`, which are not read.
    """
    try:
        number, *values = map(float, words)
    except ValueError as error:
        raise UserError(
            "data.bad_label", f"{where}: {str(error).split(': ')[-1]} is not a number; correct it"
        ) from error
    if not 0 <= number < classes or number % 1:
        raise UserError("data.bad_label", f"{where}: class {words[0]} is not from 0 to {classes - 1}; correct it")
    is_box = len(values) in (4, 5, 4 + keypoints)
    if not is_box and (len(values) < 6 or len(values) % 2):
        what = f"{counted(len(values), 'number')} after the class: neither a box (4) nor a polygon (6, 8, 10, ...)"
        raise UserError("data.bad_label", f"{where}: {what}; correct it")
    values = values[:4] if is_box else values
    if not all(-SLACK <= value <= 1 + SLACK for value in values):
        what = "is not from 0 to 1: coordinates are fractions of the image's width and height"
        wrong = next(value for value in values if not -SLACK <= value <= 1 + SLACK)
        raise UserError("data.bad_label", f"{where}: {wrong:g} {what}; correct it")
    pixels = [value * side for value, side in zip(values, size * (len(values) // 2), strict=True)]
    if is_box:
        x, y, w, h = pixels
        return _annotation(number, [x - w / 2, y - h / 2, w, h], w * h)
    xs, ys = pixels[::2], pixels[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {**_annotation(number, box, polygon_area(pixels)), "segmentation": [pixels]}


def _annotation(number: float, box: list[float], area: float) -> Entry:
    return {"category_id": int(number) + 1, "bbox": box, "area": area, "iscrowd": 0}


def _lines(file: Path) -> list[str]:
    # Some editors on Windows write a byte order mark.
    return file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
