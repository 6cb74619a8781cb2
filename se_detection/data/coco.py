"""A person's own COCO-format data: checked before training starts, and registered with detectron2.

What is checked is what detectron2's loader, its mapper and pycocotools would stumble over hours later, or get wrong
without a word.
"""

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path, PurePath
from reprlib import repr as short
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import ExifTags, Image
from tqdm import tqdm

from ..errors import UserError

Entry = dict[str, Any]

SHOW_PROGRESS_FROM = 2000
MAX_THREADS = 8
QUARTER_TURNS = (5, 6, 7, 8)


class Rule(NamedTuple):
    """What the value of a key must be, in words and as a test."""

    what: str
    holds: Callable[[Any], bool]
    required: bool = True


def _is_integer(value: Any) -> bool:
    return type(value) is int  # bool is a subclass of int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


def _is_inside(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value != ""
        and not PurePath(value).is_absolute()
        and ".." not in PurePath(value).parts
    )


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return {"counts", "size"} <= value.keys()
    return value is None or (isinstance(value, list) and all(isinstance(polygon, list) for polygon in value))


ID = Rule("an integer", _is_integer)
PIXELS = Rule("a positive integer", lambda value: _is_integer(value) and value > 0)
CROWD = Rule("0 or 1", lambda value: _is_integer(value) and value in (0, 1), required=False)
CATEGORY = {"id": ID, "name": Rule("a name", lambda value: isinstance(value, str) and value != "")}
IMAGE = {
    "id": ID,
    "file_name": Rule("a relative path inside the image folder", _is_inside),
    "height": PIXELS,
    "width": PIXELS,
}
ANNOTATION = {
    "id": ID,
    "image_id": ID,
    "category_id": ID,
    "bbox": Rule("[x, y, width, height]: four finite numbers, width and height not negative", _is_box),
    "iscrowd": CROWD,
    "ignore": Rule("0, as detectron2 knows no ignored boxes", lambda value: value == 0, required=False),
    "segmentation": Rule("polygons or a run-length code", _is_segmentation, required=False),
}
EVALUATED_ANNOTATION = ANNOTATION | {
    # pycocotools takes a detection matched to annotation 0 for an unmatched one, and AP is too low.
    "id": Rule("an integer other than 0, which means `no match` to pycocotools", lambda v: _is_integer(v) and v != 0),
    "area": Rule("a number of pixels, as evaluation is by size", lambda value: _is_number(value) and value >= 0),
    "iscrowd": CROWD._replace(required=True),
}


def check_coco(json_file: str | Path, image_root: str | Path, *, evaluated: bool = True) -> list[str]:
    """Checks an annotation file and all its images, and returns the category names in the order of their ids.

    Every image is decoded, with a progress bar where there are many.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: the folder that the images' `file_name` starts from.
        evaluated: whether AP is measured on it. pycocotools then needs `area` and `iscrowd` in every annotation and no
            annotation id 0; for training alone detectron2 doesn't.

    Raises:
        UserError: the first thing that is wrong; it names the file, and the entry or image.
    """
    content = _read(json_file)
    categories = _categories(json_file, content)
    image_ids = _check_entries(json_file, "images", content["images"], IMAGE)
    annotations = content["annotations"]
    _check_entries(json_file, "annotations", annotations, EVALUATED_ANNOTATION if evaluated else ANNOTATION)
    _check_references(json_file, annotations, "image", image_ids)
    _check_references(json_file, annotations, "category", categories.keys())
    if all(annotation.get("iscrowd") for annotation in annotations):
        raise UserError(f"{json_file}: no annotations other than crowds, so nothing to train on or find; add some")
    _check_images(json_file, content["images"], image_root)
    return list(categories.values())


def load_categories(json_files: Sequence[str | Path]) -> list[str]:
    """The category names that annotation files have in common, in the order of their ids.

    Raises:
        UserError: a file has no usable categories, or not the same ids and names as the first.
    """
    first, *others = [(json_file, _categories(json_file, _read(json_file))) for json_file in json_files]
    for other in others:
        for pair in zip_longest(first[1].items(), other[1].items()):
            if pair[0] != pair[1]:
                mine, theirs = (f"category {item[0]} {item[1]!r}" if item else "no category" for item in pair)
                raise UserError(
                    f"{first[0]} has {mine} where {other[0]} has {theirs}; give all files the same categories"
                )
    return list(first[1].values())


def register_coco_json(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Registers a COCO-format set with detectron2, its classes known at once; harmless if it is registered already.

    Raises:
        UserError: the name is taken by another set, or the file has no usable categories.
    """
    paths = {"json_file": os.path.abspath(json_file), "image_root": os.path.abspath(image_root)}
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if any(os.path.abspath(metadata.get(key, "")) != path for key, path in paths.items()):
            raise UserError(
                f"data set {name!r} is registered already, with {metadata.get('json_file')} and "
                f"{metadata.get('image_root')}; give {json_file} another name"
            )
        return
    categories = _categories(json_file, _read(json_file))
    classes = {
        "thing_classes": list(categories.values()),
        "thing_dataset_id_to_contiguous_id": {id_: index for index, id_ in enumerate(categories)},
    }
    register_coco_instances(name, classes, **paths)


def check_registered(name: str) -> None:
    """Checks that a data set that a config names is registered, and that its files are there.

    A set whose metadata has `made_on_first_use=True` needs no files yet.

    Raises:
        UserError: it isn't, with names that are close; or a file is not where it was looked for.
    """
    if name not in DatasetCatalog:
        close = " or ".join(difflib.get_close_matches(name, DatasetCatalog.list()))
        raise UserError(
            f"data set {name!r} is not registered{f' (did you mean {close}?)' if close else ''}; "
            "give your own COCO-format data with --train-json, --train-images, --val-json and --val-images"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("made_on_first_use"):
        return
    for key in ("json_file", "image_root"):
        path = metadata.get(key)
        if path is not None and not os.path.exists(path):
            raise UserError(
                f"data set {name!r}: {os.path.abspath(path)} does not exist; put it there, or set DETECTRON2_DATASETS "
                f"(now {os.getenv('DETECTRON2_DATASETS', 'unset')}) to the folder that holds detectron2's data sets"
            )


def _read(json_file: str | Path) -> dict[str, list[Any]]:
    """The file's content, known to have COCO's three lists, whatever is in them."""
    try:
        content = json.loads(Path(json_file).read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(
            f"{json_file}: cannot be read ({error.strerror}); give an annotation file that can be"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_file}: not JSON in UTF-8 ({error}); write the file anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{json_file}: not a COCO file, as its top level is no object; give COCO's instances format")
    for kind in ("images", "annotations", "categories"):
        if not isinstance(content.get(kind), list):
            raise UserError(f"{json_file}: not a COCO file, as it has no list {kind!r}; give COCO's instances format")
    return content


def _categories(json_file: str | Path, content: dict[str, list[Any]]) -> dict[int, str]:
    """Names by id, in the order of the ids: the order in which detectron2 makes them contiguous."""
    _check_entries(json_file, "categories", content["categories"], CATEGORY)
    names = [category["name"] for category in content["categories"]]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{json_file}: several categories are named {repeated[0]!r}, and results are by name; rename one"
        )
    return dict(sorted((category["id"], category["name"]) for category in content["categories"]))


def _check_entries(json_file: str | Path, kind: str, entries: list[Any], rules: dict[str, Rule]) -> set[int]:
    """Checks the entries of one of the three lists, and returns their ids."""
    ids: set[int] = set()
    for index, entry in enumerate(entries):
        problem = _problem(entry, rules)
        if problem is None and entry["id"] in ids:
            problem = "has an id that an earlier one has too; make ids unique"
        if problem is not None:
            name = f"{kind}[{index}]"
            if isinstance(entry, dict) and "id" in entry:
                name += f" (id {short(entry['id'])})"
            raise UserError(f"{json_file}: {name} {problem}")
        ids.add(entry["id"])
    if not ids and kind != "annotations":
        raise UserError(f"{json_file}: {kind!r} is empty; add some")
    return ids


def _problem(entry: Any, rules: dict[str, Rule]) -> str | None:
    if not isinstance(entry, dict):
        return f"is {short(entry)}, not an object; correct it"
    for key, rule in rules.items():
        if key not in entry:
            if rule.required:
                return f"has no {key!r}; add it ({rule.what})"
        elif not rule.holds(entry[key]):
            return f"has {key!r} {short(entry[key])}, which must be {rule.what}; correct it"
    return None


def _check_references(json_file: str | Path, annotations: list[Entry], target: str, ids: Container[int]) -> None:
    lost = [annotation for annotation in annotations if annotation[f"{target}_id"] not in ids]
    if lost:
        first = lost[0]
        raise UserError(
            f"{json_file}: annotation {first['id']} names {target} {first[f'{target}_id']}, which the file does not "
            f"have ({len(lost)} such annotations); correct or remove them"
        )


def _check_images(json_file: str | Path, images: list[Entry], image_root: str | Path) -> None:
    if not os.path.isdir(image_root):
        raise UserError(f"{image_root}: not a folder; give the one that holds the images of {json_file}")
    missing = [
        image["file_name"] for image in images if not os.path.isfile(os.path.join(image_root, image["file_name"]))
    ]
    if missing:
        raise UserError(
            f"{json_file}: {len(missing)} of {len(images)} images are not in {image_root}, the first of them "
            f"{missing[0]!r}; add them or give another folder"
        )
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        # An exception in the loop cancels what the pool has not started yet.
        done = pool.map(partial(_check_image, json_file, image_root), images)
        for _ in tqdm(done, "checking images", len(images), disable=len(images) <= SHOW_PROGRESS_FROM):
            pass


def _check_image(json_file: str | Path, image_root: str | Path, image: Entry) -> None:
    path = os.path.join(image_root, image["file_name"])
    try:
        width, height = _decoded_size(path)
    except Exception as error:  # Pillow's decoders pass on whatever broken data makes them stumble over
        raise UserError(
            f"{json_file}: image {image['id']}, {path}, cannot be decoded ({error}); replace or remove it"
        ) from error
    if (width, height) != (image["width"], image["height"]):
        raise UserError(
            f"{json_file}: image {image['id']} has width {image['width']} and height {image['height']}, but {path} has "
            f"{width} and {height} (turned as its EXIF orientation says); correct one of them"
        )


def _decoded_size(path: str) -> tuple[int, int]:
    """Width and height as detectron2's `read_image` finds them; all of the file's data is decoded."""
    with Image.open(path) as image:
        width, height = image.size
        orientation = None
        with contextlib.suppress(Exception):  # detectron2 reads an image with broken EXIF data as if it had none
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        image.draft("RGB", (1, 1))  # a JPEG is decoded to an eighth of its size: half the time, the same data read
        image.load()
    return (height, width) if orientation in QUARTER_TURNS else (width, height)
