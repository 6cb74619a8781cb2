"""Checks the masks and keypoints of COCO annotations, and makes detectron2's keypoint metadata."""

import colorsys
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

from ..errors import UserError, counted
from .coco_format import Content, Entry, is_name, is_number

# The words for a side, and their abbreviations, in lower case.
LEFT = "left gauche links linke linker izquierda izquierdo sinistra sinistro esquerda esquerdo 左 l lt lft izq sx"
RIGHT = "right droite droit rechts rechte rechter derecha derecho destra destro direita direito 右 r rt rgt der dx"
SIDES = dict.fromkeys(LEFT.split(), "left") | dict.fromkeys(RIGHT.split(), "right")
OPPOSITE = {"left": "right", "right": "left"}
# Shorter words are only sides if both sides have them: `L4` may be a vertebra.
LONG = 4
# Between words: `leftEye`, `LEye`, `eye1`.
BOUNDARY = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
# `lefteye` has two words; `cleft` and `bright` have one.
WORD = re.compile(r"(?<![^\W_])(?:left|right)|[左右]|[^\W_左右]+")
Words = tuple[str, ...]


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
            wrong[annotation["id"]] = f"has {counted(len(points), 'number')} instead of {3 * len(names)}"
        elif evaluated and not is_number(annotation.get("num_keypoints")):
            wrong[annotation["id"]] = "has no 'num_keypoints', which evaluation needs"
    needed = "'keypoints' (x, y and visibility of each, all 0 where unknown), or set MODEL.KEYPOINT_ON to False"
    _refuse("data.no_keypoints", json_file, wrong, needed)
    return names


def keypoint_metadata(content: Content) -> dict[str, Any]:
    """detectron2's `keypoint_names`, `keypoint_flip_map` and `keypoint_connection_rules`; empty without keypoints.

    The flip map has the :func:`flip_pairs`. The connections are those of the first category's `skeleton`, each in its
    own hue.
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
        "keypoint_flip_map": flip_pairs(names),
        "keypoint_connection_rules": [
            (*pair, tuple(round(255 * part) for part in hue)) for pair, hue in zip(pairs, hues, strict=True)
        ],
    }


def flip_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a left and a right keypoint, by their names: they differ only in their words for a side.

    Examples are `left_eye`, `LEye`, `eye_l`, `leye`, `oeil_gauche`, each with its counterpart.
    """
    by_words = {_with_sides(_words(name)): name for name in names}
    pairs = []
    for words, name in by_words.items():
        if (right := next(filter(by_words.get, _mirrored(words)), None)) is not None:
            pairs.append((name, by_words[right]))
    return pairs


def flipped_indices(names: Sequence[str], pairs: Iterable[Sequence[str]]) -> list[int]:
    """For each keypoint, the index of the one whose place it takes in a flipped image."""
    other = {one: two for pair in pairs for one, two in (pair, reversed(pair))}
    return [names.index(other.get(name, name)) for name in names]


def check_flips(source: str, names: Sequence[str], given: Sequence[Sequence[str]] = ()) -> None:
    """Checks that the left and right keypoints are known, as they are swapped in flipped images.

    Args:
        source: the data set, for the message.
        given: `INPUT.KEYPOINT_FLIP_MAP`, which replaces the pairs that the names show.

    Raises:
        UserError: a given pair is not valid, a keypoint has no counterpart, or the names don't show the sides.
    """
    if given:
        named = [name for pair in given for name in set(pair)]
        if not set(named) <= set(names) or len(set(named)) < len(named) or any(len(pair) != 2 for pair in given):
            problem = f"INPUT.KEYPOINT_FLIP_MAP is {short(given)}; give pairs of different keypoints of {source}"
            raise UserError("config.keypoint_flip_map", f"{problem}: {', '.join(names)}")
        return
    pairs = flip_pairs(names)
    words = {name: set(_words(name)) & SIDES.keys() for name in names}
    paired = {name for pair in pairs for name in pair}
    sides = set().union(*(words[name] for name in paired)) | {word for word in SIDES if len(word) >= LONG}
    advice = "or INPUT.RANDOM_FLIP none"
    for name in names:
        if name not in paired and words[name] & sides:
            problem = f"{source}: keypoint {name!r} has no counterpart to swap with in flipped images"
            raise UserError("data.unpaired_keypoint", f"{problem}; add it, set INPUT.KEYPOINT_FLIP_MAP, {advice}")
    similar: dict[Words, str] = {}
    for name in names if not pairs else ():
        key = tuple("" if len(word) < 3 or word.isdigit() else word for word in _words(name))
        if (first := similar.setdefault(key, name)) != name:
            problem = (
                f"{source}: keypoints {first!r} and {name!r} may be a left and a right one, to swap in flipped images"
            )
            example = f'INPUT.KEYPOINT_FLIP_MAP "[({first!r}, {name!r})]"'
            raise UserError(
                "data.unknown_sides", f"{problem}; list all pairs: {example} (a name with itself if not), {advice}"
            )


def _words(name: str) -> Words:
    return tuple(WORD.findall(BOUNDARY.sub("_", name).lower()))


def _with_sides(words: Words) -> Words:
    return tuple(SIDES.get(word, word) for word in words)


def _mirrored(words: Words) -> Iterator[Words]:
    """The possible words of the right keypoint, given those of the left one."""
    if first := next((word for word in words if word in OPPOSITE), None):
        if first == "left":
            yield tuple(OPPOSITE.get(word, word) for word in words)
        return
    for index, word in enumerate(words):
        for left, right in (("^l", "r"), ("left$", "right")):  # `lhip`, `eyeleft`
            if re.search(left, word):
                yield (*words[:index], re.sub(left, right, word), *words[index + 1 :])


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
