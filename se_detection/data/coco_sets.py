"""Checks COCO-format data sets before training, and registers them with detectron2.

The checks find what detectron2's loader, its mapper or pycocotools would fail on hours later, or silently get wrong.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
    Content,
    Entry,
    category_names,
    check_entries,
    check_references,
    read_coco,
)
from .image_files import BadImage, Undecodable, inspect_image, map_files, reason
from .masks_and_keypoints import keypoint_metadata

# Exceptions of detectron2 and pycocotools for annotations that they can't use.
DATA_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def check_coco(json_file: str | Path, image_root: str | Path, *, evaluated: bool = True) -> list[str]:
    """Checks an annotation file and all its images, and returns the category names in the order of their ids.

    Every image is decoded, with a progress bar if there are many.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: the folder that the images' `file_name` is relative to.
        evaluated: whether AP is measured on this file. pycocotools then needs `area` and `iscrowd` in every annotation,
            and no annotation may have the id 0; training needs neither.

    Raises:
        UserError: the first problem; the message names the file, and the entry or image.
    """
    content = check_annotations(json_file, evaluated=evaluated)
    check_images(json_file, content["images"], image_root, skippable=not evaluated)
    return list(category_names(json_file, content).values())


def check_annotations(json_file: str | Path, *, evaluated: bool) -> Content:
    """The part of :func:`check_coco` that needs no images; returns the file's content.

    Raises:
        UserError: as :func:`check_coco`.
    """
    content = read_coco(json_file)
    categories = category_names(json_file, content)
    image_ids = check_entries(json_file, "images", content["images"], IMAGE)
    annotations = content["annotations"]
    check_entries(json_file, "annotations", annotations, EVALUATED_ANNOTATION if evaluated else ANNOTATION)
    check_references(json_file, annotations, "image", image_ids)
    check_references(json_file, annotations, "category", categories.keys())
    if all(annotation.get("iscrowd") for annotation in annotations):
        raise UserError(f"{json_file}: no annotations other than crowds, so nothing to train on or to detect; add some")
    return content


def check_images(
    json_file: str | Path, images: list[Entry], image_root: str | Path, *, skippable: bool, longest: int | None = None
) -> None:
    """The part of :func:`check_coco` that decodes the images.

    Args:
        json_file: the annotation file, for the message.
        images: its image entries, which have been checked.
        image_root: the images' folder.
        skippable: whether the message suggests `--skip-bad-images`.
        longest: the maximum length of a resized image's longer side, in pixels; None if images are not resized.

    Raises:
        UserError: as :func:`check_coco`.
    """
    _check_folder(json_file, image_root)
    alternative = ", or skip bad images with --skip-bad-images" if skippable else ""
    missing = [
        image["file_name"] for image in images if not os.path.isfile(os.path.join(image_root, image["file_name"]))
    ]
    if missing:
        raise UserError(
            f"{json_file}: {len(missing)} of {len(images)} images are not in {image_root}, the first of them "
            f"{missing[0]!r}; add them or give another folder{alternative}"
        )
    map_files(partial(_check_image, json_file, image_root, longest, alternative), images)


def find_bad_images(
    json_file: str | Path, content: Content, image_root: str | Path, *, longest: int | None = None
) -> list[BadImage]:
    """All images that :func:`check_coco` refuses, in the order of the file.

    Args:
        json_file: the annotation file, for the message.
        content: its content, from :func:`check_annotations`.
        image_root: the images' folder.
        longest: the maximum length of a resized image's longer side, in pixels; None if images are not resized.

    Raises:
        UserError: the folder does not exist, or no image with objects can be used.
    """
    _check_folder(json_file, image_root)
    images = content["images"]
    found = map_files(partial(_bad_image, image_root, longest), images)
    bad = {image["id"]: problem for image, problem in zip(images, found, strict=True) if problem is not None}
    if all(item.get("iscrowd") or item["image_id"] in bad for item in content["annotations"]):
        first = next(iter(bad.values()))
        raise UserError(
            f"{json_file}: without the {len(bad)} of {len(images)} images that can't be used, nothing to train on is "
            f"left; correct or replace them (the first, {first.file_name}, {first.reason})"
        )
    return list(bad.values())


def common_categories(contents: Mapping[str, Content]) -> list[str]:
    """The category names that all annotation files share, in the order of their ids.

    Args:
        contents: the content of each file, by file name; only `categories` is needed.

    Raises:
        UserError: a file has no usable categories, or other ids or names than the first file.
    """
    first, *others = [(json_file, category_names(json_file, content)) for json_file, content in contents.items()]
    for other in others:
        check_same_categories(first, other)
    return list(first[1].values())


def check_same_categories(first: tuple[str | Path, dict[int, str]], other: tuple[str | Path, dict[int, str]]) -> None:
    """Compares two files' category names by id.

    Args:
        first, other: an annotation file and its :func:`category_names`.

    Raises:
        UserError: the categories differ; the message names both files and the first difference.
    """
    for pair in zip_longest(first[1].items(), other[1].items()):
        if pair[0] != pair[1]:
            mine, theirs = (f"category {item[0]} {item[1]!r}" if item else "no category" for item in pair)
            raise UserError(f"{first[0]} has {mine} where {other[0]} has {theirs}; give all files the same categories")


def register_coco_json(
    name: str, json_file: str | Path, image_root: str | Path, content: Content | None = None
) -> None:
    """Registers a COCO-format data set with detectron2, including its classes and keypoints.

    Registering the same data set again does nothing.

    Args:
        name: the data set's name in detectron2's catalogs.
        json_file: the annotation file.
        image_root: the images' folder.
        content: the file's content, if it has been read; only `categories` is needed.

    Raises:
        UserError: another data set has this name, or the file has no usable categories.
    """
    paths = {"json_file": os.path.abspath(json_file), "image_root": os.path.abspath(image_root)}
    if name in DatasetCatalog:
        metadata = MetadataCatalog.get(name)
        if any(os.path.abspath(metadata.get(key, "")) != path for key, path in paths.items()):
            raise UserError(
                f"data set {name!r} is already registered with {metadata.get('json_file')} and "
                f"{metadata.get('image_root')}; give {json_file} another name"
            )
        return
    content = content or read_coco(json_file)
    categories = category_names(json_file, content)
    classes = {
        "thing_classes": list(categories.values()),
        "thing_dataset_id_to_contiguous_id": {id_: index for index, id_ in enumerate(categories)},
        **keypoint_metadata(content),
    }
    register_coco_instances(name, classes, **paths)


def check_registered(name: str) -> None:
    """Checks that a config's data set is registered and that its files exist.

    A data set whose metadata has `made_on_first_use=True` needs no files yet.

    Raises:
        UserError: the data set is not registered (the message has similar names), or a file is missing.
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
    for key in ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root"):
        path = metadata.get(key)
        if path is not None and not os.path.exists(path):
            root = os.getenv("DETECTRON2_DATASETS", "unset")
            hint = "; the files of 2017 have the same images: docs/COCO.md" if name.startswith("coco_2014_") else ""
            raise UserError(
                f"data set {name!r}: {os.path.abspath(path)} does not exist; put it there, or set DETECTRON2_DATASETS "
                f"(now {root}) to the folder that holds detectron2's data sets{hint}"
            )


@contextmanager
def name_failing_dataset(datasets: Iterable[str]) -> Iterator[None]:
    """A context in which detectron2 reads annotations: its errors become a :class:`UserError` that names the data sets.

    Built-in data sets are too large to be checked before training.
    """
    try:
        yield
    except UserError:
        raise
    except DATA_ERRORS as error:
        raise UserError(
            f"data set {', '.join(datasets)}: its annotations can't be used: {reason(error)}; correct the file"
        ) from error


def _check_folder(json_file: str | Path, image_root: str | Path) -> None:
    if not os.path.isdir(image_root):
        raise UserError(f"{image_root}: not a folder; give the one that holds the images of {json_file}")


def _check_image(
    json_file: str | Path, image_root: str | Path, longest: int | None, alternative: str, image: Entry
) -> None:
    problem = _bad_image(image_root, longest, image)
    if problem is not None:
        raise UserError(
            f"{json_file}: image {image['id']}, {problem.file_name}, {problem.reason}; correct, replace or remove "
            f"it{alternative}"
        )


def _bad_image(image_root: str | Path, longest: int | None, image: Entry) -> BadImage | None:
    path = os.path.join(os.path.abspath(image_root), image["file_name"])
    found = inspect_image(path)
    if found is None:
        problem = "does not exist"
    elif isinstance(found, Undecodable):
        problem = f"cannot be decoded ({found.reason})"
    elif found[:2] != (image["width"], image["height"]):
        problem = (
            f"is annotated with width {image['width']} and height {image['height']}, but has {found.width} and "
            f"{found.height} (after its EXIF orientation is applied)"
        )
    # The same rounding as in detectron2.
    elif longest is not None and int(min(found[:2]) * longest / max(found[:2]) + 0.5) < 1:
        problem = f"is so thin ({found.width}x{found.height}) that resizing its longer side to {longest} leaves nothing"
    else:
        return None
    return BadImage(path, image["width"], image["height"], problem)
