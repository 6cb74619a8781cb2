"""Reads COCO annotations and results for evaluation, and compares two annotation files."""

import contextlib
import filecmp
import io
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from ..errors import UserError
from ..files import read_json
from .coco_format import (
    CATEGORY,
    EVALUATED_ANNOTATION,
    ID,
    KINDS,
    Entry,
    check_entries,
    check_references,
    is_box,
    is_integer,
    is_number,
)

EVALUATED = ("image_id", "category_id", "bbox", "area", "iscrowd")
RULES = {key: EVALUATED_ANNOTATION[key] for key in ("id", *EVALUATED)}


def load_coco(dataset: Entry) -> COCO:
    """Indexes `images`, `annotations` and `categories` with pycocotools, without its messages."""
    coco = COCO()
    coco.dataset = dataset
    with silenced():
        coco.createIndex()
    return coco


def silenced() -> contextlib.redirect_stdout[io.StringIO]:
    """A context that suppresses pycocotools' messages."""
    return contextlib.redirect_stdout(io.StringIO())


def load_annotations(source: Entry | Path | str) -> COCO:
    """Checks annotations for evaluation and indexes them with pycocotools; the source is not modified.

    Raises:
        UserError: the file is missing, is not in COCO's instances format, or has an entry that can't be evaluated.
    """
    content, name = (source, "annotations") if isinstance(source, dict) else (read_json(Path(source)), str(source))
    if not isinstance(content, dict) or not all(isinstance(content.get(kind), list) for kind in KINDS):
        raise UserError(f"{name}: not COCO annotations; give lists of images, annotations and categories")
    if not content["images"]:
        raise UserError(f"{name}: no images to evaluate on; add some")
    # pycocotools silently drops annotations of unknown images, and all but one of the entries that share an id.
    images = check_entries(name, "images", content["images"], {"id": ID})
    check_entries(name, "annotations", content["annotations"], RULES)
    check_references(name, content["annotations"], "image", images)
    categories = check_entries(name, "categories", content["categories"], CATEGORY)
    check_references(name, content["annotations"], "category", categories)
    # pycocotools writes into the annotations.
    annotations = [dict(annotation) for annotation in content["annotations"]]
    return load_coco({**content, "annotations": annotations})


def load_results(source: list[Entry] | Path | str, coco: COCO, name: str) -> list[Entry]:
    """Reads detections and checks them against the annotations; keys that box AP does not need are dropped.

    Raises:
        UserError: the file is missing, is not in COCO's results format, or names unknown images or categories.
    """
    content = source if isinstance(source, list) else read_json(Path(source))
    name = name if isinstance(source, list) else str(source)
    if not isinstance(content, list):
        raise UserError(f"{name}: not COCO results; give a list of detections")
    results = []
    for number, item in enumerate(content):
        where = f"{name}: detection {number}"
        if not is_detection(item):
            raise UserError(f"{where} needs image_id, category_id, bbox ([x, y, width, height]) and score")
        for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
            if item[key] not in known:
                raise UserError(
                    f"{where} has {key} {item[key]!r}, which is not in the annotations; give the same data set's"
                )
        results.append({key: item[key] for key in ("image_id", "category_id", "bbox", "score")})
    return results


def is_detection(item: Any) -> bool:
    """Whether a value is an entry of COCO's results format: a box with a score."""
    return (
        isinstance(item, dict)
        and all(is_integer(item.get(key)) for key in ("image_id", "category_id"))
        and is_box(item.get("bbox"))
        and is_number(item.get("score"))
    )


def data_difference(first: Path, second: Path) -> str | None:
    """The first of `categories`, `images` and `boxes` that differs between two annotation files, or None.

    Raises:
        UserError: a file can't be read, or is not in COCO's instances format.
    """
    if filecmp.cmp(first, second, shallow=False):
        return None
    one, other = (load_annotations(path).dataset for path in (first, second))
    for what, entries, keys in (
        ("categories", "categories", ("id", "name")),
        ("images", "images", ("id",)),
        ("boxes", "annotations", EVALUATED),
    ):
        left, right = (sorted(repr([item.get(key) for key in keys]) for item in data[entries]) for data in (one, other))
        if left != right:
            return what
    return None
