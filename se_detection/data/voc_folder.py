"""Data in Pascal VOC's format: an XML file for each image."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from ..errors import UserError
from .coco_format import Content, Entry
from .data_folder import PARTS, DataFolder, FolderPart, common_root, image_sizes, part_of
from .image_files import image_formats

ANNOTATIONS, LISTS = "Annotations", "ImageSets/Main"
IMAGE_FOLDERS = ("JPEGImages", "images")
SIZE = re.compile(r"[1-9]\d{0,8}", re.ASCII)
SIDES = ("xmin", "ymin", "xmax", "ymax")


def find_voc(folder: Path) -> DataFolder | None:
    """The parts of a folder with XML files: in `Annotations/`, next to the images, or in a folder for each part.

    The parts in `Annotations/` are lists in `ImageSets/Main/`. None without such files.
    """
    if files := sorted((folder / ANNOTATIONS).glob("*.xml")):
        lists = {path.stem: path for path in (folder / LISTS).glob("*.txt") if path.stem in PARTS}
        found = {PARTS[name]: _listed(path, folder / ANNOTATIONS) for name, path in lists.items()} or {"": files}
    elif files := sorted(folder.glob("*.xml")):
        found = {"": files}
    else:
        children = sorted(path for path in folder.iterdir() if path.is_dir() and part_of(path.name))
        found = {part_of(path.name): files for path in children if (files := sorted(path.rglob("*.xml")))}
    parts = {part: partial(_read, folder, files, [*found.values()]) for part, files in found.items()}
    return DataFolder(folder, "Pascal VOC", parts) if parts else None


def _listed(file: Path, annotations: Path) -> list[Path]:
    """The XML files of the images that a list names; VOC adds a number to the names, and CVAT a folder before them."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if name := line.strip():
            wanted = [annotations / f"{text}.xml" for text in (name, name.split()[0], Path(name).stem)]
            if (path := next(filter(os.path.isfile, wanted), None)) is None:
                raise UserError(
                    "data.missing_annotations", f"{file}:{number}: there is no {wanted[0]}; correct the list"
                )
            found.append(path)
    if not found:
        raise UserError("data.no_images", f"{file} is empty; add the names of images, or remove it")
    return found


def _read(folder: Path, files: Sequence[Path], all_parts: Sequence[Sequence[Path]]) -> FolderPart:
    roots = {file: _root(file) for part in all_parts for file in part}
    # Of all parts, as a class may be missing in one of them.
    names = sorted({_text(file, item, "name") for file, root in roots.items() for item in root.iter("object")})
    images = _images(folder, files, roots)
    image_root = common_root(images)
    return FolderPart(folder, image_root, _content(files, [roots[file] for file in files], images, image_root, names))


def _root(file: Path) -> Element:
    try:
        root: Element = parse(file).getroot()
    except ParseError as error:
        raise UserError("data.bad_xml", f"{file}:{error.position[0]}: {error.msg}; correct it") from error
    except (DefusedXmlException, ValueError, LookupError) as error:  # also an unknown encoding
        raise UserError("data.bad_xml", f"{file}: it can't be read ({error}); remove it") from error
    if root.tag != "annotation":
        raise UserError("data.bad_xml", f"{file} is not Pascal VOC: it has <{root.tag}>, not <annotation>; remove it")
    return root


def _images(folder: Path, files: Iterable[Path], roots: dict[Path, Element]) -> list[Path]:
    """The image of each XML file: of the same name, which annotation programs keep, or that in `filename`."""
    formats = image_formats()
    folders = dict.fromkeys([*(folder / name for name in IMAGE_FOLDERS), folder, *(file.parent for file in files)])
    by_stem: dict[tuple[Path, str], Path] = {}
    for place in folders:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if path.suffix.lower() in formats:
                by_stem.setdefault((place, path.stem), path)
    found = []
    for file in files:
        stated = Path((roots[file].findtext("filename") or "").replace("\\", "/")).stem
        # First the folder of the file itself: in a folder for each part, a name may be in several.
        keys = [(place, stem) for stem in (file.stem, stated) for place in (file.parent, *folders)]
        if (image := next((by_stem[key] for key in keys if key in by_stem), None)) is None:
            where = ", ".join(str(place) for place in folders if place.is_dir())
            raise UserError("data.missing_images", f"{file}: there is no image of this name in {where}; add it")
        found.append(image)
    return found


def _content(
    files: Sequence[Path], roots: Sequence[Element], images: Sequence[Path], image_root: Path, names: list[str]
) -> Content:
    entries: list[Entry] = []
    annotations: list[Entry] = []
    for file, root, image, actual in zip(files, roots, images, image_sizes(images), strict=True):
        stated = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
        # Some programs write 0. A wrong size is found when the data is checked.
        width, height = map(int, stated) if all(map(SIZE.fullmatch, stated)) else actual
        name = image.relative_to(image_root).as_posix()
        entries.append({"id": len(entries) + 1, "file_name": name, "width": width, "height": height})
        for number, item in enumerate(root.iter("object"), 1):
            box = _box(f"{file}: object {number}", file, item)
            # A click without a drag.
            if max(box[2:]) > 1:
                annotations.append(
                    {
                        **{"id": len(annotations) + 1, "image_id": len(entries)},
                        **{"category_id": names.index(_text(file, item, "name")) + 1},
                        **{"bbox": box, "area": box[2] * box[3], "iscrowd": 0},
                    }
                )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _box(where: str, file: Path, item: Element) -> list[float]:
    """COCO's box: VOC counts pixels from 1, and the last row and column belong to the object."""
    corners = []
    for side in SIDES:
        text = _text(file, item, f"bndbox/{side}")
        try:
            corners.append(float(text))
        except ValueError as error:
            raise UserError("data.bad_xml", f"{where}: {side} {text!r} is not a number; correct it") from error
    (left, right), (top, bottom) = sorted(corners[::2]), sorted(corners[1::2])
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _text(file: Path, item: Element, path: str) -> str:
    text = (item.findtext(path) or "").strip()
    if not text:
        name = item.findtext("name") or "without a name"
        raise UserError("data.bad_xml", f"{file}: an object ({name}) has no <{path.replace('/', '> <')}>; add it")
    return text
