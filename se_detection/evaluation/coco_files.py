"""COCO's JSON files as an evaluation needs them, and whether two sets of annotations are the same."""

import contextlib
import filecmp
import io
import json
import math
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from ..errors import UserError

Entry = dict[str, Any]

EVALUATED = ("image_id", "category_id", "bbox", "area", "iscrowd")


def read_json(path: Path) -> Any:
    """A file's content.

    Raises:
        UserError: there is no such file, or it holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error})") from error


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
        UserError: no such file, or no COCO instances.
    """
    content, name = (source, "annotations") if isinstance(source, dict) else (read_json(Path(source)), str(source))
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise UserError(f"{name}: no COCO annotations; they have lists of images, annotations and categories")
    if not content["images"]:
        raise UserError(f"{name}: no images to evaluate on")
    # pycocotools writes into the annotations.
    annotations = [dict(annotation) for annotation in content["annotations"]]
    for annotation in annotations:
        for key in ("id", *EVALUATED):
            if annotation.get(key) is None:
                raise UserError(f"{name}: annotation {annotation.get('id')} has no {key}; evaluation needs it")
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
        if not isinstance(item, dict) or not _is_box(item):
            raise UserError(f"{where} is none; it needs image_id, category_id, bbox ([x, y, width, height]) and score")
        for key, known in (("image_id", coco.imgs), ("category_id", coco.cats)):
            if item[key] not in known:
                raise UserError(
                    f"{where} has {key} {item[key]!r}, which is not in the annotations; are they another set's?"
                )
        results.append({key: item[key] for key in ("image_id", "category_id", "bbox", "score")})
    return results


def _is_box(item: Entry) -> bool:
    box, score = item.get("bbox"), item.get("score")
    ids = (item.get("image_id"), item.get("category_id"))
    if not all(isinstance(key, int | str) for key in ids) or not isinstance(box, list) or len(box) != 4:
        return False
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (*box, score))
    return numbers and min(box[2:]) >= 0


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
