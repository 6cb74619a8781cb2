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

from ..errors import UserError, counted
from .coco_format import (
    ANNOTATION,
    EVALUATED_ANNOTATION,
    IMAGE,
    Content,
    Entry,
    category_names,
    check_content,
    encoding,
    read_coco,
)
from .file_names import find_renamed
from .image_files import BadImage, inspect_image, map_files, reason
from .masks_and_keypoints import keypoint_metadata

# Exceptions of detectron2 and pycocotools for annotations that they can't use.
DATA_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


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
    """The part of :func:`check_coco` that needs no images; returns the file's content."""
    content = read_coco(json_file)
    if (found := encoding(Path(json_file))) != "utf-8":
        advice = "write it without a byte order mark, as se-det check-data --fix does"
        raise UserError("data.encoding", f"{json_file} is in {found}, which pycocotools does not read; {advice}")
    check_content(json_file, content, IMAGE, EVALUATED_ANNOTATION if evaluated else ANNOTATION)
    category_names(json_file, content)
    if all(annotation.get("iscrowd") for annotation in content["annotations"]):
        raise UserError("data.no_objects", f"{json_file}: no annotations other than crowds; add some")
    return content


def check_images(
    json_file: str | Path, images: list[Entry], image_root: str | Path, *, skippable: bool, longest: int | None = None
) -> None:
    """The part of :func:`check_coco` that decodes the images; it stops at the first that can't be used.

    Args:
        skippable: whether the message suggests `--skip-bad-images`.
        longest: the maximum length of a resized image's longer side, in pixels; None if images are not resized.
    """
    alternative = ", or skip bad images with --skip-bad-images" if skippable else ""
    names = [image["file_name"] for image in images]
    missing = [name for name in names if not os.path.isfile(os.path.join(image_root, name))]
    if missing and os.path.isdir(image_root):
        where = f"{json_file}: {len(missing)} of {counted(len(images), 'image')} can't be found in {image_root}"
        advice = f"add them or give another folder{alternative}"
        first = repr(missing[0])
        if renamed := find_renamed(image_root, names):
            first += f"; {len(renamed)} have another name there, such as {next(iter(renamed.values()))!r}"
            advice = "correct the names with se-det check-data --fix"
        raise UserError("data.missing_images", f"{where}, the first of them {first}; {advice}")
    for image, problem in zip(images, _problems(json_file, images, image_root, longest), strict=True):
        if problem is not None:
            where = f"{json_file}: image {image['id']}, {problem.file_name}, {problem.reason}"
            raise UserError("data.bad_image", f"{where}; correct, replace or remove it{alternative}")


def find_bad_images(
    json_file: str | Path, content: Content, image_root: str | Path, *, longest: int | None = None
) -> list[BadImage]:
    """All images that :func:`check_images` refuses, in the order of the file.

    Raises:
        UserError: the folder does not exist, or no image with objects can be used.
    """
    images = content["images"]
    found = zip(images, _problems(json_file, images, image_root, longest), strict=True)
    bad = {image["id"]: problem for image, problem in found if problem is not None}
    if all(item.get("iscrowd") or item["image_id"] in bad for item in content["annotations"]):
        first = next(iter(bad.values()))
        raise UserError(
            "data.no_objects",
            f"{json_file}: {len(bad)} of {counted(len(images), 'image')} can't be used, and no objects are left; "
            f"correct them (the first, {first.file_name}, {first.reason})",
        )
    return list(bad.values())


def common_categories(contents: Mapping[str, Content]) -> list[str]:
    """The category names that all annotation files (content by name) share, in the order of their ids.

    Raises:
        UserError: a file has no usable categories, or other ids or names than the first file.
    """
    names = {json_file: category_names(json_file, content) for json_file, content in contents.items()}
    first = next(iter(names))
    for other in names:
        if difference := category_difference(names[first], names[other]):
            where = f"{first} has {difference[0]} where {other} has {difference[1]}"
            raise UserError("data.other_categories", f"{where}; give all files the same categories")
    return list(names[first].values())


def category_difference(first: dict[int, str], other: dict[int, str]) -> tuple[str, str] | None:
    """The first categories that differ, in words, of two files' :func:`category_names`; None if they are the same."""
    for pair in zip_longest(first.items(), other.items()):
        if pair[0] != pair[1]:
            mine, theirs = (f"category {item[0]} {item[1]!r}" if item else "no category" for item in pair)
            return mine, theirs
    return None


def register_coco_json(
    name: str, json_file: str | Path, image_root: str | Path, content: Content | None = None
) -> None:
    """Registers a COCO-format data set with detectron2, including its classes and keypoints.

    Registering the same data set again does nothing. Of the file's content, only `categories` is needed.

    Raises:
        UserError: another data set has this name, or the file has no usable categories.
    """
    paths = {"json_file": os.path.abspath(json_file), "image_root": os.path.abspath(image_root)}
    if name in DatasetCatalog:
        known = {key: MetadataCatalog.get(name).get(key, "") for key in paths}
        if {key: os.path.abspath(path) for key, path in known.items()} != paths:
            where = f"data set {name!r} is already registered with {' and '.join(known.values())}"
            raise UserError("data.name_taken", f"{where}; give {json_file} another name")
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
    """Checks that a config's data set is registered, and that its files exist unless it is `made_on_first_use`.

    Raises:
        UserError: the data set is not registered (the message has similar names), or a file is missing.
    """
    if name not in DatasetCatalog:
        close = " or ".join(difflib.get_close_matches(name, DatasetCatalog.list()))
        hint = f" (did you mean {close}?)" if close else ""
        flags = "--train-json, --train-images, --val-json and --val-images"
        raise UserError("data.unknown_set", f"data set {name!r} is not registered{hint}; give your own by {flags}")
    forget_conversion(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("made_on_first_use"):
        return
    for key in ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root"):
        path = metadata.get(key)
        if path is not None and not os.path.exists(path):
            root = os.getenv("DETECTRON2_DATASETS", "unset")
            hint = "; the files of 2017 have the same images: docs/COCO.md" if name.startswith("coco_2014_") else ""
            raise UserError(
                "data.missing_files",
                f"data set {name!r}: {os.path.abspath(path)} does not exist; put it there, or set DETECTRON2_DATASETS "
                f"(now {root}) to the folder that holds detectron2's data sets{hint}",
            )


def converted_name(name: str) -> str:
    """The file name that detectron2 gives to the COCO annotations of a data set which is registered without any."""
    return f"{name}_coco_format.json"


def forget_conversion(name: str) -> None:
    """Removes such a file from a data set's metadata.

    detectron2's evaluator adds it, and then reads no other: neither for another output folder nor for corrected labels.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("image_root") is None and str(metadata.get("json_file")).endswith(converted_name(name)):
        del metadata.json_file


@contextmanager
def name_failing_dataset(datasets: Iterable[str]) -> Iterator[None]:
    """A context in which detectron2 reads built-in data, too large to check first: errors name the data sets."""
    try:
        yield
    except UserError:
        raise
    except DATA_ERRORS as error:
        where = f"data set {', '.join(datasets)}"
        raise UserError("data.unusable", f"{where}: unusable annotations: {reason(error)}; correct the file") from error


def _problems(
    json_file: str | Path, images: list[Entry], image_root: str | Path, longest: int | None
) -> Iterator[BadImage | None]:
    """Decodes each image, in several threads."""
    if not os.path.isdir(image_root):
        raise UserError("data.no_folder", f"{image_root}: not a folder; give the one with the images of {json_file}")
    return map_files(partial(_bad_image, image_root, longest), images)


def _bad_image(image_root: str | Path, longest: int | None, image: Entry) -> BadImage | None:
    path = os.path.join(os.path.abspath(image_root), image["file_name"])
    found = inspect_image(path)
    if found is None:
        problem = "does not exist"
    elif isinstance(found, str):
        problem = f"cannot be decoded ({found})"
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
