"""Checks the masks and keypoints of COCO annotations, and makes detectron2's keypoint metadata."""

import colorsys
import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from .coco_format import Content, Entry, is_name, is_number

OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
OTHER_SIDE |= {right: left for left, right in OTHER_SIDE.items()}


def check_masks(json_file: str | Path, content: Content, *, evaluated: bool) -> None:
    """Checks that all objects of a checked file have masks: polygons, or run-length codes of their image's size.

    Args:
        evaluated: whether mask AP is measured on this file. pycocotools then needs masks of crowds too, and treats a
            polygon of two points as a box.

    Raises:
        UserError: some objects have no usable mask.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    wrong: dict[int, str] = {}
    for annotation in _used_annotations(content, evaluated):
        mask, size = annotation.get("segmentation"), sizes[annotation["image_id"]]
        if not mask:
            wrong[annotation["id"]] = "has none"
        elif isinstance(mask, dict) and mask["size"] != size:
            wrong[annotation["id"]] = f"has one of size {mask['size']} (height, width), but its image is {size}"
        elif isinstance(mask, list) and evaluated and any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask):
            wrong[annotation["id"]] = "has a polygon of fewer than three points, or an odd number of coordinates"
    needed = "'segmentation': polygons or a run-length code, or set MODEL.MASK_ON to False"
    _refuse("data.no_masks", json_file, wrong, needed)


def has_run_length_codes(content: Content) -> bool:
    """Whether any training mask is a run-length code: detectron2 then needs `INPUT.MASK_FORMAT: bitmask`."""
    return any(isinstance(annotation.get("segmentation"), dict) for annotation in _used_annotations(content, False))


def check_keypoints(json_file: str | Path, content: Content, *, evaluated: bool) -> list[str]:
    """Checks that all objects of a checked file have the keypoints that their categories name; returns the names.

    Args:
        evaluated: whether keypoint AP is measured on this file. pycocotools then needs keypoints of crowds too, and
            `num_keypoints`.

    Raises:
        UserError: a category names no keypoints or other keypoints than the first category, or an object has no
            keypoints or a wrong number of them.
    """
    names = _keypoint_names(content["categories"][0])
    for category in content["categories"]:
        found = _keypoint_names(category)
        if not found or found != names:
            raise UserError(
                "data.keypoint_names",
                f"{json_file}: category {category['id']} {category['name']!r} has no 'keypoints' (a list of different "
                "names), or others than the first category; correct them, or set MODEL.KEYPOINT_ON to False",
            )
    wrong: dict[int, str] = {}
    for annotation in _used_annotations(content, evaluated):
        points = annotation.get("keypoints")
        if not points:
            wrong[annotation["id"]] = "has none"
        elif len(points) != 3 * len(names):
            wrong[annotation["id"]] = f"has {len(points)} numbers instead of {3 * len(names)}"
        elif evaluated and not is_number(annotation.get("num_keypoints")):
            wrong[annotation["id"]] = "has no 'num_keypoints', which evaluation needs"
    needed = "'keypoints' (x, y and visibility of each, all 0 where unknown), or set MODEL.KEYPOINT_ON to False"
    _refuse("data.no_keypoints", json_file, wrong, needed)
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
    try:
        numbered = dict(enumerate(names, start=1))
        pairs = [(numbered[one], numbered[other]) for one, other in categories[0].get("skeleton", ())]
    except (TypeError, ValueError, KeyError):
        pairs = []
    hues = [colorsys.hsv_to_rgb(number / len(pairs), 0.85, 1.0) for number in range(len(pairs))]
    return {
        "keypoint_names": names,
        "keypoint_flip_map": [
            (name, other_side(name)) for name in names if "left" in name.lower() if other_side(name) in names
        ],
        "keypoint_connection_rules": [
            (*pair, tuple(round(255 * part) for part in hue)) for pair, hue in zip(pairs, hues, strict=True)
        ],
    }


def other_side(name: str) -> str:
    """Swaps left and right in a name: `left_eye` becomes `right_eye`; a name without a side is not changed."""
    return re.sub("|".join(OTHER_SIDE), lambda found: OTHER_SIDE[found[0]], name)


def _used_annotations(content: Content, evaluated: bool) -> list[Entry]:
    """All annotations for evaluation; for training all but crowds, which detectron2 does not train on."""
    return [annotation for annotation in content["annotations"] if evaluated or not annotation.get("iscrowd")]


def _keypoint_names(category: Entry) -> list[str]:
    """The names of a category's keypoints; empty if they are missing, not valid or not unique."""
    names = category.get("keypoints")
    return names if isinstance(names, list) and all(map(is_name, names)) and len(set(names)) == len(names) else []


def _refuse(code: str, json_file: str | Path, wrong: dict[int, str], needed: str) -> None:
    for id_, problem in wrong.items():
        raise UserError(code, f"{json_file}: annotation {id_} {problem} ({len(wrong)} such); give each {needed}")
