"""A person's own COCO-format data: checked before training starts, and registered with detectron2.

What is checked is what detectron2's loader, its mapper and pycocotools would stumble over hours later, or get wrong
without a word.
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
from .image_files import BadImage, Undecodable, look_at, map_files
from .masks_and_keypoints import keypoint_metadata


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
    content = check_annotations(json_file, evaluated=evaluated)
    check_images(json_file, content["images"], image_root, skippable=not evaluated)
    return list(category_names(json_file, content).values())


def check_annotations(json_file: str | Path, *, evaluated: bool) -> Content:
    """The part of :func:`check_coco` that needs no images; returns the file's content.

    Raises:
        UserError: see there.
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
    return content


def check_images(
    json_file: str | Path, images: list[Entry], image_root: str | Path, *, skippable: bool, longest: int | None = None
) -> None:
    """The part of :func:`check_coco` that decodes the images.

    Args:
        json_file: what is named.
        images: its entries, which were checked.
        image_root: their folder.
        skippable: whether a person may leave images out.
        longest: pixels that an image's longer side will have at most when it is resized.

    Raises:
        UserError: see there.
    """
    _check_folder(json_file, image_root)
    otherwise = ", or leave out what can't be used by --skip-bad-images" if skippable else ""
    missing = [
        image["file_name"] for image in images if not os.path.isfile(os.path.join(image_root, image["file_name"]))
    ]
    if missing:
        raise UserError(
            f"{json_file}: {len(missing)} of {len(images)} images are not in {image_root}, the first of them "
            f"{missing[0]!r}; add them or give another folder{otherwise}"
        )
    map_files(partial(_check_image, json_file, image_root, longest, otherwise), images)


def find_bad_images(
    json_file: str | Path, content: Content, image_root: str | Path, *, longest: int | None = None
) -> list[BadImage]:
    """All images that :func:`check_coco` would stop at, in the order of the file.

    Args:
        json_file: the annotations.
        content: of :func:`check_annotations`.
        image_root: the images' folder.
        longest: pixels that an image's longer side will have at most when it is resized.

    Raises:
        UserError: there is no such folder, or nothing to train on would be left.
    """
    _check_folder(json_file, image_root)
    images = content["images"]
    found = map_files(partial(_bad_image, image_root, longest), images)
    bad = {image["id"]: problem for image, problem in zip(images, found, strict=True) if problem is not None}
    if all(item.get("iscrowd") or item["image_id"] in bad for item in content["annotations"]):
        first = next(iter(bad.values()))
        raise UserError(
            f"{json_file}: without the {len(bad)} of {len(images)} images that can't be used, nothing to train on is "
            f"left; the first of them, {first.file_name}, {first.reason}"
        )
    return list(bad.values())


def common_categories(contents: Mapping[str, Content]) -> list[str]:
    """The category names that annotation files have in common, in the order of their ids.

    Args:
        contents: `categories` by file.

    Raises:
        UserError: a file has no usable categories, or not the same ids and names as the first.
    """
    first, *others = [(json_file, category_names(json_file, content)) for json_file, content in contents.items()]
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


def register_coco_json(
    name: str, json_file: str | Path, image_root: str | Path, content: Content | None = None
) -> None:
    """Registers a COCO-format set with detectron2, its classes and keypoints known at once; harmless the second time.

    Args:
        name: what detectron2 is to know it by.
        json_file: the annotations.
        image_root: the images' folder.
        content: the file's `categories`, if they have been read.

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
    content = content or read_coco(json_file)
    categories = category_names(json_file, content)
    classes = {
        "thing_classes": list(categories.values()),
        "thing_dataset_id_to_contiguous_id": {id_: index for index, id_ in enumerate(categories)},
        **keypoint_metadata(content),
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
    for key in ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root"):
        path = metadata.get(key)
        if path is not None and not os.path.exists(path):
            root = os.getenv("DETECTRON2_DATASETS", "unset")
            same = "; the files of 2017 have the same images: docs/COCO.md" if name.startswith("coco_2014_") else ""
            raise UserError(
                f"data set {name!r}: {os.path.abspath(path)} does not exist; put it there, or set DETECTRON2_DATASETS "
                f"(now {root}) to the folder that holds detectron2's data sets{same}"
            )


def _check_folder(json_file: str | Path, image_root: str | Path) -> None:
    if not os.path.isdir(image_root):
        raise UserError(f"{image_root}: not a folder; give the one that holds the images of {json_file}")


def _check_image(
    json_file: str | Path, image_root: str | Path, longest: int | None, otherwise: str, image: Entry
) -> None:
    problem = _bad_image(image_root, longest, image)
    if problem is not None:
        raise UserError(
            f"{json_file}: image {image['id']}, {problem.file_name}, {problem.reason}; correct, replace or remove "
            f"it{otherwise}"
        )


def _bad_image(image_root: str | Path, longest: int | None, image: Entry) -> BadImage | None:
    path = os.path.join(os.path.abspath(image_root), image["file_name"])
    found = look_at(path)
    if found is None:
        reason = "is not there"
    elif isinstance(found, Undecodable):
        reason = f"cannot be decoded ({found.reason})"
    elif found[:2] != (image["width"], image["height"]):
        reason = (
            f"is annotated with width {image['width']} and height {image['height']}, but has {found.width} and "
            f"{found.height} (turned as its EXIF orientation says)"
        )
    # As detectron2 rounds.
    elif longest is not None and int(min(found[:2]) * longest / max(found[:2]) + 0.5) < 1:
        reason = f"is so thin ({found.width}x{found.height}) that with a longer side of {longest} nothing is left of it"
    else:
        return None
    return BadImage(path, image["width"], image["height"], reason)


# What detectron2 and pycocotools stumble over annotations with.
MISTAKES_IN_DATA = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@contextmanager
def naming(datasets: Iterable[str]) -> Iterator[None]:
    """Names the data sets whose annotations detectron2 stumbles over; built-in ones are not read through before."""
    try:
        yield
    except UserError:
        raise
    except MISTAKES_IN_DATA as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data set {', '.join(datasets)}: its annotations can't be used: {reason}") from error
