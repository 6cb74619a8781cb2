"""Rules of COCO's instances format, as detectron2's loader and pycocotools need it."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from reprlib import repr as short
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import read_json

Entry = dict[str, Any]
Content = dict[str, Any]

KINDS = ("images", "annotations", "categories")
# The key by which an annotation names an entry of another list.
REFERENCES = {"images": "image_id", "categories": "category_id"}
# Pillow does not support larger images.
MAX_SIDE = 2**31


class Rule(NamedTuple):
    """What the value of a key must be: a description, and a test of the value."""

    what: str
    holds: Callable[[Any], bool]
    required: bool = True


Rules = Mapping[str, Rule]


class Problem(NamedTuple):
    """What is wrong with an entry: the key (None if the entry is not an object), and a text."""

    key: str | None
    text: str


def is_integer(value: Any) -> bool:
    """Whether a value is a 64-bit integer; numpy, and so pycocotools, turns larger ones into floats."""
    return type(value) is int and abs(value) < 2**63  # bool is a subclass of int


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
    """Whether a value is [x, y, width, height], in numbers that fit detectron2's single precision."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return False
    return max(map(abs, value)) < MAX_SIDE and min(value[2:]) >= 0


def is_name(value: Any) -> bool:
    """Whether a value is a non-empty string that UTF-8 can encode (a lone surrogate can't be encoded)."""
    return isinstance(value, str) and value != "" and value.encode(errors="ignore").decode() == value


def is_inside(file_name: Any) -> bool:
    """Whether a value is a relative path that stays inside its folder; symbolic links are not checked."""
    if not is_name(file_name) or "\0" in file_name:
        return False
    return not PurePath(file_name).is_absolute() and ".." not in PurePath(file_name).parts


def _is_side(value: Any) -> bool:
    return is_integer(value) and 0 < value < MAX_SIDE


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_run_length_code(value.get("size"), value.get("counts"))
    if not isinstance(value, list) or not all(map(_is_polygon, value)):
        return value is None
    # detectron2 drops an annotation, with its box, if none of its polygons has three points.
    return not value or any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in value)


def _is_list_of_numbers(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_number, value)))


def _is_polygon(value: Any) -> bool:
    # One test for all numbers: polygons are most of a file.
    try:
        return isinstance(value, list) and set(map(type, value)) <= {int, float} and math.isfinite(sum(value))
    except OverflowError:
        return False


def _is_run_length_code(size: Any, counts: Any) -> bool:
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_side, size)):
        return False
    if isinstance(counts, str):
        return counts.isascii()
    whole = isinstance(counts, list) and all(is_integer(count) and count >= 0 for count in counts)
    return whole and sum(counts) == math.prod(size)


ID = Rule("a 64-bit integer", is_integer)
PIXELS = Rule("a positive integer below 2^31", _is_side)
CROWD = Rule("0 or 1", lambda value: is_integer(value) and value in (0, 1), required=False)
CATEGORY = {"id": ID, "name": Rule("a name", is_name)}
FILE_NAME = Rule("a relative path inside the image folder", is_inside)
IMAGE = {"id": ID, "file_name": FILE_NAME, "height": PIXELS, "width": PIXELS}
ANNOTATION = {
    "id": ID,
    "image_id": ID,
    "category_id": ID,
    "bbox": Rule("[x, y, width, height]: four numbers within 2^31, width and height not negative", is_box),
    "iscrowd": CROWD,
    "ignore": Rule("0, as detectron2 does not support ignored boxes", lambda value: value == 0, required=False),
    "segmentation": Rule("polygons of at least three points, or a run-length code", _is_segmentation, required=False),
    "keypoints": Rule("a list of numbers", _is_list_of_numbers, required=False),
}
EVALUATED_ANNOTATION = ANNOTATION | {
    # pycocotools counts a detection that matches annotation 0 as unmatched, so AP is too low.
    "id": Rule("an integer other than 0, which means `no match` to pycocotools", lambda v: is_integer(v) and v != 0),
    "area": Rule("a number of pixels, as AP is also computed by size", lambda value: is_number(value) and value >= 0),
    "iscrowd": CROWD._replace(required=True),
}


def read_coco(json_file: str | Path, lists: Sequence[str] = KINDS) -> Content:
    """Reads an annotation file and checks that it has COCO's three lists, or those in `lists`; entries are not checked.

    Raises:
        UserError: the file can't be read, is not JSON, or lacks a list.
    """
    return check_lists(json_file, read_json(Path(json_file)), lists)


def encoding(json_file: Path) -> str:
    """The encoding of a JSON file; pycocotools, which detectron2 reads annotations with, needs `utf-8`."""
    with json_file.open("rb") as file:
        return json.detect_encoding(file.read(4))


def check_lists(json_file: str | Path, content: Any, lists: Sequence[str] = KINDS) -> Content:
    """The content, if it is an object with COCO's lists; else a :class:`UserError`. Entries are not checked."""
    missing = [kind for kind in lists if not isinstance(content, dict) or not isinstance(content.get(kind), list)]
    if missing:
        raise UserError("data.not_coco", f"{json_file}: no list {missing[0]!r}; give annotations in COCO's format")
    return content


def problems(entry: Any, rules: Rules) -> Iterator[Problem]:
    """All problems of an entry."""
    if not isinstance(entry, dict):
        yield Problem(None, f"is {short(entry)}, not an object; correct it")
        return
    for key, rule in rules.items():
        if key not in entry:
            if rule.required:
                yield Problem(key, f"has no {key!r}; add it ({rule.what})")
        elif not rule.holds(entry[key]):
            yield Problem(key, f"has {key!r} {short(entry[key])}, which must be {rule.what}; correct it")


def usable(entry: Any, rules: Rules, *keys: str) -> bool:
    """Whether an entry has the given keys, with values that follow the rules."""
    return isinstance(entry, dict) and all(key in entry and rules[key].holds(entry[key]) for key in keys)


def is_crowd(annotation: Any) -> bool:
    """Whether an annotation is a crowd, which is not used in training."""
    return isinstance(annotation, dict) and is_set(annotation.get("iscrowd"))


def is_set(flag: Any) -> bool:
    """Whether a flag is set, of any type; the text `0` is not."""
    return bool(flag) and flag != "0"


def mostly_crowds(annotations: Sequence[Any]) -> bool:
    """Whether most annotations are crowds. CVAT marks each mask so; about 1 % of COCO's annotations are crowds."""
    return 2 * sum(map(is_crowd, annotations)) > len(annotations)


def entry_name(kind: str, index: int, entry: Any) -> str:
    """How messages name an entry: `images[3] (id 139)`."""
    name = f"{kind}[{index}]"
    return f"{name} (id {short(entry['id'])})" if isinstance(entry, dict) and "id" in entry else name


def check_content(json_file: str | Path, content: Content, image: Rules, annotation: Rules) -> None:
    """Checks all entries of an annotation file by these rules, and that each annotation's image and category exist.

    Raises:
        UserError: an entry is not valid, two entries of a list share an id, an annotation names an unknown image or
            category, or there are no images or no categories.
    """
    rules = (image, annotation, CATEGORY)
    ids = {kind: check_entries(json_file, kind, content[kind], each) for kind, each in zip(KINDS, rules, strict=True)}
    for kind, key in REFERENCES.items():
        for entry in content["annotations"]:
            if entry[key] not in ids[kind]:
                where = f"{json_file}: annotation {entry['id']} has {key} {entry[key]}"
                raise UserError("data.unknown_id", f"{where}, which is not in {kind!r}; correct or remove it")


def check_entries(json_file: str | Path, kind: str, entries: list[Any], rules: Rules) -> set[int]:
    """Checks the entries of one of the three lists and returns their ids.

    Raises:
        UserError: an entry is not valid, two entries share an id, or there are no images or no categories.
    """
    ids: set[int] = set()
    for index, entry in enumerate(entries):
        for problem in problems(entry, rules):
            raise UserError("data.bad_entry", f"{json_file}: {entry_name(kind, index, entry)} {problem.text}")
        if entry["id"] in ids:
            where = f"{json_file}: {entry_name(kind, index, entry)}"
            raise UserError("data.repeated_id", f"{where} has the id of an earlier entry; make ids unique")
        ids.add(entry["id"])
    if not ids and kind != "annotations":
        raise UserError("data.empty", f"{json_file}: {kind!r} is empty; add some")
    return ids


def category_names(json_file: str | Path, content: Content) -> dict[int, str]:
    """Category names by id, sorted by id, which is how detectron2 numbers the classes.

    Raises:
        UserError: a category is not valid, two have the same name, or the list is empty.
    """
    check_entries(json_file, "categories", content["categories"], CATEGORY)
    names = Counter(category["name"] for category in content["categories"])
    if repeated := sorted(name for name, count in names.items() if count > 1):
        where = f"{json_file}: several categories are named {repeated[0]!r}"
        raise UserError("data.repeated_name", f"{where}, and results are reported by name; rename one")
    return dict(sorted((category["id"], category["name"]) for category in content["categories"]))


def image_path(json_file: str | Path, image_root: str | Path, image: Entry) -> Path:
    """The path of an image's file; `json_file` is for the message.

    Raises:
        UserError: `file_name` is missing or leads out of the folder.
    """
    for problem in problems(image, {"file_name": FILE_NAME}):
        raise UserError("data.bad_entry", f"{json_file}: image {short(image.get('id'))} {problem.text}")
    return Path(image_root, image["file_name"])
