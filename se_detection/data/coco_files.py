"""Reads COCO annotations and results for evaluation, and compares two annotation files."""

import contextlib
import filecmp
from pathlib import Path

from pycocotools.coco import COCO

from ..errors import UserError
from ..files import read_json
from .coco_format import (
    EVALUATED_ANNOTATION,
    ID,
    Entry,
    Rule,
    check_content,
    check_lists,
    is_number,
    problems,
    read_coco,
)

EVALUATED = ("image_id", "category_id", "bbox", "area", "iscrowd")
RULES = {key: EVALUATED_ANNOTATION[key] for key in ("id", *EVALUATED)}
DETECTION = {key: RULES[key] for key in ("image_id", "category_id", "bbox")} | {"score": Rule("a number", is_number)}


def load_coco(dataset: Entry) -> COCO:
    """Indexes `images`, `annotations` and `categories` with pycocotools, without its messages."""
    coco = COCO()
    coco.dataset = dataset
    with silenced():
        coco.createIndex()
    return coco


def silenced() -> contextlib.redirect_stdout[None]:
    """A context that suppresses pycocotools' messages."""
    return contextlib.redirect_stdout(None)


def load_annotations(source: Entry | Path | str) -> COCO:
    """Checks annotations for evaluation and indexes them with pycocotools; the source is not modified.

    Raises:
        UserError: the file is missing, is not in COCO's instances format, or has an entry that can't be evaluated.
    """
    name = "annotations" if isinstance(source, dict) else str(source)
    content = check_lists(name, source) if isinstance(source, dict) else read_coco(source)
    # pycocotools silently drops annotations of unknown images, and all but one of the entries that share an id.
    check_content(name, content, {"id": ID}, RULES)
    # pycocotools writes into the annotations.
    return load_coco({**content, "annotations": [dict(annotation) for annotation in content["annotations"]]})


def load_results(source: list[Entry] | Path | str, coco: COCO, name: str) -> list[Entry]:
    """Reads detections and checks them against the annotations; keys that box AP does not need are dropped.

    Raises:
        UserError: the file is missing, is not in COCO's results format, or names unknown images or categories.
    """
    content, name = (source, name) if isinstance(source, list) else (read_json(Path(source)), str(source))
    if not isinstance(content, list):
        raise UserError("results.not_coco", f"{name}: not COCO results; give a list of detections")
    results = []
    for number, item in enumerate(content):
        where = f"{name}: detection {number}"
        for problem in problems(item, DETECTION):
            raise UserError("results.bad_detection", f"{where} {problem.text}")
        for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
            if item[key] not in known:
                unknown = f"has {key} {item[key]}, which is not in the annotations"
                raise UserError("results.unknown_id", f"{where} {unknown}; give the same data set's")
        results.append({key: item[key] for key in DETECTION})
    return results


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
