"""A person's own COCO-format data: checked before training starts, and registered with detectron2.

What is checked is what detectron2's loader, its mapper and pycocotools would stumble over hours later, or get wrong
without a word.
"""

import difflib
import os
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError
from .coco_format import (
    ANNOTATION,
    EVALUATED_ANNOTATION,
    IMAGE,
    Entry,
    category_names,
    check_entries,
    check_references,
    read_coco,
)
from .image_files import decode, map_files


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
    content = read_coco(json_file)
    categories = category_names(json_file, content)
    image_ids = check_entries(json_file, "images", content["images"], IMAGE)
    annotations = content["annotations"]
    check_entries(json_file, "annotations", annotations, EVALUATED_ANNOTATION if evaluated else ANNOTATION)
    check_references(json_file, annotations, "image", image_ids)
    check_references(json_file, annotations, "category", categories.keys())
    if all(annotation.get("iscrowd") for annotation in annotations):
        raise UserError(f"{json_file}: no annotations other than crowds, so nothing to train on or find; add some")
    _check_images(json_file, content["images"], image_root)
    return list(categories.values())


def load_categories(json_files: Sequence[str | Path]) -> list[str]:
    """The category names that annotation files have in common, in the order of their ids.

    Raises:
        UserError: a file has no usable categories, or not the same ids and names as the first.
    """
    first, *others = [(json_file, category_names(json_file, read_coco(json_file))) for json_file in json_files]
    for other in others:
        check_same_categories(first, other)
    return list(first[1].values())


def check_same_categories(first: tuple[str | Path, dict[int, str]], other: tuple[str | Path, dict[int, str]]) -> None:
    """Compares two files' category names by id.

    Args:
        first, other: a file and its :func:`category_names`.

    Raises:
        UserError: they differ; it names both files and the first difference.
    """
    for pair in zip_longest(first[1].items(), other[1].items()):
        if pair[0] != pair[1]:
            mine, theirs = (f"category {item[0]} {item[1]!r}" if item else "no category" for item in pair)
            raise UserError(f"{first[0]} has {mine} where {other[0]} has {theirs}; give all files the same categories")


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
    categories = category_names(json_file, read_coco(json_file))
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
    map_files(partial(_check_image, json_file, image_root), images)


def _check_image(json_file: str | Path, image_root: str | Path, image: Entry) -> None:
    path = os.path.join(image_root, image["file_name"])
    try:
        width, height, _ = decode(path)
    except Exception as error:  # see `decode`
        raise UserError(
            f"{json_file}: image {image['id']}, {path}, cannot be decoded ({error}); replace or remove it"
        ) from error
    if (width, height) != (image["width"], image["height"]):
        raise UserError(
            f"{json_file}: image {image['id']} has width {image['width']} and height {image['height']}, but {path} has "
            f"{width} and {height} (turned as its EXIF orientation says); correct one of them"
        )
