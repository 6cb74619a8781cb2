"""Checks the masks and keypoints of COCO annotations, and makes detectron2's keypoint metadata."""

import colorsys
import re
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as short
from typing import Any

from ..errors import UserError
from .coco_format import Content, Entry, is_integer, is_name, is_number

OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
OTHER_SIDE |= {right: left for left, right in OTHER_SIDE.items()}


def check_masks(json_file: str | Path, content: Content, *, evaluated: bool) -> None:
    """Checks that all objects have masks: polygons, or run-length codes of their image's size.

    Args:
        json_file: the annotation file, for the message.
        content: its content, with entries that have been checked.
        evaluated: whether mask AP is measured on this file. pycocotools then needs masks of crowds too, and treats a
            polygon of two points as a box.

    Raises:
        UserError: some objects have no usable mask.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    wrong = []
    for annotation in _relevant_annotations(content, evaluated):
        mask = annotation.get("segmentation")
        if not mask:
            wrong.append((annotation, "has none"))
        elif isinstance(mask, dict) and mask["size"] != sizes[annotation["image_id"]]:
            size = sizes[annotation["image_id"]]
            wrong.append((annotation, f"has one of size {mask['size']} (height, width), but its image is {size}"))
        elif isinstance(mask, list) and evaluated and any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            wrong.append((annotation, "has a polygon of fewer than three points, or an odd number of coordinates"))
    _refuse(json_file, content, wrong, "mask", "'segmentation': polygons or a run-length code", "MODEL.MASK_ON")


def has_run_length_codes(content: Content) -> bool:
    """Whether any training mask is a run-length code: detectron2 then needs `INPUT.MASK_FORMAT: bitmask`."""
    return any(isinstance(annotation.get("segmentation"), dict) for annotation in _relevant_annotations(content, False))


def check_keypoints(json_file: str | Path, content: Content, *, evaluated: bool) -> list[str]:
    """Checks that all objects have the keypoints that their categories name, and returns the names.

    Args:
        json_file: the annotation file, for the message.
        content: its content, with entries that have been checked.
        evaluated: whether keypoint AP is measured on this file. pycocotools then needs keypoints of crowds too, and
            `num_keypoints`.

    Raises:
        UserError: a category names no keypoints or other keypoints than the first category, or an object has no
            keypoints or a wrong number of them.
    """
    names: list[str] = []
    for category in content["categories"]:
        found = _keypoint_names(category)
        where = f"{json_file}: category {category['id']} {category['name']!r}"
        if not found:
            raise UserError(
                f"{where} has no 'keypoints' (a list of different names); add them, or set MODEL.KEYPOINT_ON to False"
            )
        if names and found != names:
            raise UserError(f"{where} has other 'keypoints' than the first category; give all categories the same list")
        names = found
    wrong = []
    for annotation in _relevant_annotations(content, evaluated):
        points = annotation.get("keypoints")
        if not points:
            wrong.append((annotation, "has none"))
        elif len(points) != 3 * len(names):
            wrong.append((annotation, f"has {len(points)} numbers, but {len(names)} keypoints need {3 * len(names)}"))
        elif evaluated and not is_number(annotation.get("num_keypoints")):
            wrong.append((annotation, "has no 'num_keypoints', which evaluation needs"))
    needed = "'keypoints' (x, y and visibility of each, all 0 where unknown)"
    _refuse(json_file, content, wrong, "keypoints", needed, "MODEL.KEYPOINT_ON")
    return names


def keypoint_metadata(content: Content) -> dict[str, Any]:
    """detectron2's `keypoint_names`, `keypoint_flip_map` and `keypoint_connection_rules`; empty without keypoints.

    Keypoints whose names differ only in `left` and `right` are swapped when an image is flipped. The connections are
    those of the first category's `skeleton`, each in its own hue.
    """
    categories = content["categories"]
    names = _keypoint_names(categories[0]) if categories else []
    if not names or any(category.get("keypoints") != names for category in categories):
        return {}
    pairs = list(_connections(categories[0].get("skeleton"), names))
    return {
        "keypoint_names": names,
        "keypoint_flip_map": [
            (name, other_side(name)) for name in names if "left" in name.lower() if other_side(name) in names
        ],
        "keypoint_connection_rules": [
            (*pair, tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / len(pairs), 0.85, 1.0)))
            for number, pair in enumerate(pairs)
        ],
    }


def other_side(name: str) -> str:
    """Swaps left and right in a name: `left_eye` becomes `right_eye`; a name without a side is not changed."""
    return re.sub("|".join(OTHER_SIDE), lambda found: OTHER_SIDE[found[0]], name)


def _relevant_annotations(content: Content, evaluated: bool) -> Iterator[Entry]:
    """All annotations for evaluation; for training all but crowds, which detectron2 does not train on."""
    return (annotation for annotation in content["annotations"] if evaluated or not annotation.get("iscrowd"))


def _connections(skeleton: Any, names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of keypoint names; COCO counts keypoints from 1."""
    for pair in skeleton if isinstance(skeleton, list) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(is_integer(at) and 1 <= at <= len(names) for at in pair):
            yield names[pair[0] - 1], names[pair[1] - 1]


def _keypoint_names(category: Entry) -> list[str]:
    """The names of a category's keypoints; empty if they are missing, not valid or not unique."""
    names = category.get("keypoints")
    usable = isinstance(names, list) and all(map(is_name, names)) and len(set(names)) == len(names)
    return names if usable and names is not None else []


def _refuse(
    json_file: str | Path, content: Content, wrong: list[tuple[Entry, str]], what: str, needed: str, key: str
) -> None:
    if wrong:
        first, problem = wrong[0]
        raise UserError(
            f"{json_file}: {len(wrong)} of {len(content['annotations'])} annotations have no usable {what}: "
            f"annotation {short(first['id'])} {problem}; give each {needed}, or set {key} to False"
        )
