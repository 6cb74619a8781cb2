"""COCO's instances format: what an annotation file must hold for detectron2's loader and for pycocotools."""

import json
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path, PurePath
from reprlib import repr as short
from typing import Any, NamedTuple

from ..errors import UserError

Entry = dict[str, Any]
Content = dict[str, Any]

KINDS = ("images", "annotations", "categories")


class Rule(NamedTuple):
    """What the value of a key must be, in words and as a test."""

    what: str
    holds: Callable[[Any], bool]
    required: bool = True


class Problem(NamedTuple):
    """What is wrong with an entry: the key (None where the entry is no object), whether it is absent, and in words."""

    key: str | None
    missing: bool
    text: str


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


def read_coco(json_file: str | Path, lists: Sequence[str] = KINDS) -> Content:
    """The content of an annotation file, known to have COCO's three lists, or those named, whatever is in them.

    Raises:
        UserError: it can't be read, or is no such file.
    """
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
    for kind in lists:
        if not isinstance(content.get(kind), list):
            raise UserError(f"{json_file}: not a COCO file, as it has no list {kind!r}; give COCO's instances format")
    return content


def problems(entry: Any, rules: dict[str, Rule]) -> Iterator[Problem]:
    """All that is wrong with an entry of one of the three lists."""
    if not isinstance(entry, dict):
        yield Problem(None, False, f"is {short(entry)}, not an object; correct it")
        return
    for key, rule in rules.items():
        if key not in entry:
            if rule.required:
                yield Problem(key, True, f"has no {key!r}; add it ({rule.what})")
        elif not rule.holds(entry[key]):
            yield Problem(key, False, f"has {key!r} {short(entry[key])}, which must be {rule.what}; correct it")


def usable(entry: Any, rules: dict[str, Rule], *keys: str) -> bool:
    """Whether the given keys of an entry are there and as their rules say."""
    return isinstance(entry, dict) and all(key in entry and rules[key].holds(entry[key]) for key in keys)


def entry_name(kind: str, index: int, entry: Any) -> str:
    """How an entry is named to a person: `images[3] (id 139)`."""
    name = f"{kind}[{index}]"
    return f"{name} (id {short(entry['id'])})" if isinstance(entry, dict) and "id" in entry else name


def check_entries(json_file: str | Path, kind: str, entries: list[Any], rules: dict[str, Rule]) -> set[int]:
    """Checks the entries of one of the three lists, and returns their ids.

    Raises:
        UserError: the first problem; an id that two entries share; no images or categories at all.
    """
    ids: set[int] = set()
    for index, entry in enumerate(entries):
        problem = next((problem.text for problem in problems(entry, rules)), None)
        if problem is None and entry["id"] in ids:
            problem = "has an id that an earlier one has too; make ids unique"
        if problem is not None:
            raise UserError(f"{json_file}: {entry_name(kind, index, entry)} {problem}")
        ids.add(entry["id"])
    if not ids and kind != "annotations":
        raise UserError(f"{json_file}: {kind!r} is empty; add some")
    return ids


def check_references(json_file: str | Path, annotations: list[Entry], target: str, ids: Container[int]) -> None:
    """Checks that all annotations name an `image` or a `category` that is there.

    Raises:
        UserError: some don't; it names the first, and counts them.
    """
    lost = [annotation for annotation in annotations if annotation[f"{target}_id"] not in ids]
    if lost:
        first = lost[0]
        raise UserError(
            f"{json_file}: annotation {first['id']} names {target} {first[f'{target}_id']}, which the file does not "
            f"have ({len(lost)} such annotations); correct or remove them"
        )


def category_names(json_file: str | Path, content: Content) -> dict[int, str]:
    """Names by id, in the order of the ids: the order in which detectron2 makes them contiguous.

    Raises:
        UserError: there are no usable categories.
    """
    check_entries(json_file, "categories", content["categories"], CATEGORY)
    names = [category["name"] for category in content["categories"]]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{json_file}: several categories are named {repeated[0]!r}, and results are by name; rename one"
        )
    return dict(sorted((category["id"], category["name"]) for category in content["categories"]))
