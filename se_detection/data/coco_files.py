"""COCO's JSON files as an evaluation needs them, and whether two sets of annotations are the same."""

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
    """pycocotools' index of `images`, `annotations` and `categories`, without its messages."""
    coco = COCO()
    coco.dataset = dataset
    with silenced():
        coco.createIndex()
    return coco


def silenced() -> contextlib.redirect_stdout[io.StringIO]:
    """A context without pycocotools' messages."""
    return contextlib.redirect_stdout(io.StringIO())


def load_annotations(source: Entry | Path | str) -> COCO:
    """pycocotools' index of annotations that can be evaluated; the source stays as it is.

    Raises:
        UserError: no such file, or no COCO instances; or something in it can't be evaluated.
    """
    content, name = (source, "annotations") if isinstance(source, dict) else (read_json(Path(source)), str(source))
    if not isinstance(content, dict) or not all(isinstance(content.get(kind), list) for kind in KINDS):
        raise UserError(f"{name}: no COCO annotations; they have lists of images, annotations and categories")
    if not content["images"]:
        raise UserError(f"{name}: no images to evaluate on")
    # pycocotools leaves out without a word what it can't place, or what another has the id of.
    images = check_entries(name, "images", content["images"], {"id": ID})
    check_entries(name, "annotations", content["annotations"], RULES)
    check_references(name, content["annotations"], "image", images)
    categories = check_entries(name, "categories", content["categories"], CATEGORY)
    check_references(name, content["annotations"], "category", categories)
    # It writes into the annotations.
    annotations = [dict(annotation) for annotation in content["annotations"]]
    return load_coco({**content, "annotations": annotations})


def load_results(source: list[Entry] | Path | str, coco: COCO, name: str) -> list[Entry]:
    """A detector's boxes, checked against the annotations; without keys that box AP has no use for.

    Raises:
        UserError: no such file, no COCO results, or results of other images or categories.
    """
    content = source if isinstance(source, list) else read_json(Path(source))
    name = name if isinstance(source, list) else str(source)
    if not isinstance(content, list):
        raise UserError(f"{name}: no COCO results; they are a list of detections")
    results = []
    for number, item in enumerate(content):
        where = f"{name}: detection {number}"
        if not is_detection(item):
            raise UserError(f"{where} is none; it needs image_id, category_id, bbox ([x, y, width, height]) and score")
        for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
            if item[key] not in known:
                raise UserError(
                    f"{where} has {key} {item[key]!r}, which is not in the annotations; are they another set's?"
                )
        results.append({key: item[key] for key in ("image_id", "category_id", "bbox", "score")})
    return results


def is_detection(item: Any) -> bool:
    """Whether a value is one of COCO's results: a box with a score."""
    return (
        isinstance(item, dict)
        and all(is_integer(item.get(key)) for key in ("image_id", "category_id"))
        and is_box(item.get("bbox"))
        and is_number(item.get("score"))
    )


def data_difference(first: Path, second: Path) -> str | None:
    """In what two files of annotations differ for an evaluation: `categories`, `images` or `boxes`; None if in nothing.

    Raises:
        UserError: a file can't be read, or holds no COCO instances.
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
