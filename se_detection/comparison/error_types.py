"""How much AP50 each type of error costs, as in TIDE.

Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, 2020. As there, boxes are matched at
IoU 0.5, an IoU below 0.1 is background, and the dAP of an error type is the gain in AP50 if only these errors were
fixed (the paper's section 3). A detection that fits several types gets the first of localization, classification,
duplicate, background and both, as in the authors' code. Two rules are COCO's instead: detections matched to crowds are
not errors, and AP50 is averaged over the classes that have objects.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from .average_precision import area_under_curve
from .matching import Array, CategoryEvaluation

FOREGROUND, BACKGROUND = 0.5, 0.1
FALSE_POSITIVES = ("classification", "localization", "both", "duplicate", "background")
ERRORS = (*FALSE_POSITIVES, "missed")


@dataclass(frozen=True)
class ErrorType:
    """The gain in AP50 without these errors, in percent, and the number of errors."""

    dap: float
    count: float


@dataclass(frozen=True)
class _Detections:
    """The category's index, score, correctness and, if wrong, error type of each detection.

    `target` is the object that a detection with a wrong class or location would match if it were fixed, or -1.
    """

    category: NDArray[np.intp]
    score: Array
    hit: NDArray[np.bool_]
    error: NDArray[np.str_]
    target: NDArray[np.intp]


def error_types(evaluations: Sequence[CategoryEvaluation]) -> dict[str, ErrorType]:
    """dAP and number of each error type, then of all false positives and all false negatives together.

    Args:
        evaluations: from :func:`match_boxes`, for all categories.
    """
    category, found, detections = _classify(evaluations)
    objects = np.bincount(category, minlength=len(evaluations))
    has_objects = objects > 0

    def ap50(chosen: _Detections, removed: NDArray[np.bool_] | None = None) -> float:
        positives = objects if removed is None else objects - np.bincount(category[removed], minlength=len(objects))
        aps = [
            _ap(chosen.score[of_class], chosen.hit[of_class], positives[number])
            for number in np.flatnonzero(has_objects)
            for of_class in [chosen.category == number]
        ]
        return 100 * float(np.mean(aps)) if aps else float("nan")

    before = ap50(detections)
    result = {}
    for name in FALSE_POSITIVES:
        fixed = _fix(detections, name, category, found)
        result[name] = ErrorType(ap50(fixed) - before, int((detections.error == name).sum()))
    missed = ~found
    missed[detections.target[detections.target >= 0]] = False
    correct = _select(detections, detections.hit)
    for name, gain, wrong in (
        ("missed", ap50(detections, missed), missed),
        ("false_positives", ap50(correct), ~detections.hit),
        ("false_negatives", ap50(detections, ~found), ~found),
    ):
        result[name] = ErrorType(gain - before, int(wrong.sum()))
    return result


def _ap(score: Array, hit: NDArray[np.bool_], positives: int) -> float:
    if positives == 0:
        return 0.0
    hit = hit[np.argsort(-score, kind="stable")]
    ones = np.ones((len(hit), 1))
    levels = np.linspace(0, 1, 101)
    return float(area_under_curve(hit, np.ones_like(hit), ones, np.array([float(positives)]), levels)[0])


def _select(detections: _Detections, chosen: NDArray[np.bool_]) -> _Detections:
    return _Detections(*(values[chosen] for values in vars(detections).values()))


def _fix(detections: _Detections, name: str, category: NDArray[np.intp], found: NDArray[np.bool_]) -> _Detections:
    """Fixes the errors of one type.

    The highest-scoring detection with a missed object as its target becomes a hit; the other wrong ones are removed.
    """
    wrong = detections.error == name
    fixable = np.flatnonzero(wrong & (detections.target >= 0))
    fixable = fixable[~found[detections.target[fixable]]]
    fixable = fixable[np.argsort(-detections.score[fixable], kind="stable")]
    _, first = np.unique(detections.target[fixable], return_index=True)
    best = fixable[first]
    hit, new_category, kept = detections.hit.copy(), detections.category.copy(), ~wrong
    hit[best], kept[best], new_category[best] = True, True, category[detections.target[best]]
    return _select(_Detections(new_category, detections.score, hit, detections.error, detections.target), kept)


def _classify(
    evaluations: Sequence[CategoryEvaluation],
) -> tuple[NDArray[np.intp], NDArray[np.bool_], _Detections]:
    """The category of each object, whether it is found, and the detections that are not ignored."""
    categories: list[int] = []
    found: list[bool] = []
    rows: list[tuple[int, float, bool, str, int]] = []
    for objects, detections in _by_image(evaluations):
        for detection, (error, target) in zip(detections, _name_errors(objects, detections), strict=True):
            index = target + len(categories) if target >= 0 else -1
            rows.append((detection.category, detection.score, detection.matched, error, index))
        categories += [item.category for item in objects]
        found += [item.matched for item in objects]
    fields = list(zip(*rows, strict=True)) or [()] * 5
    kinds = (np.intp, np.float64, np.bool_, np.str_, np.intp)
    arrays: list[NDArray[Any]] = [np.array(field, dtype=kind) for field, kind in zip(fields, kinds, strict=True)]
    return np.array(categories, dtype=np.intp), np.array(found, dtype=bool), _Detections(*arrays)


class _Box(NamedTuple):
    """An object or a detection in an image."""

    category: int
    box: list[float]
    matched: bool
    score: float = 0.0


def _by_image(evaluations: Sequence[CategoryEvaluation]) -> Iterable[tuple[list[_Box], list[_Box]]]:
    """The objects and detections of each image, without ignored ones, in the order of the images."""
    grouped: dict[int, tuple[list[_Box], list[_Box]]] = {}
    for category, evaluation in enumerate(evaluations):
        for index, image in zip(evaluation.image_indices, evaluation.evalImgs, strict=False):
            objects, detections = grouped.setdefault(int(index), ([], []))
            truth = zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True)
            objects += [
                _Box(category, evaluation.cocoGt.anns[key]["bbox"], match != 0)
                for key, match, ignored in truth
                if not ignored
            ]
            results = zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], image["dtScores"], strict=True)
            detections += [
                _Box(category, evaluation.cocoDt.anns[key]["bbox"], match != 0, score)
                for key, match, ignored, score in results
                if not ignored
            ]
    return [grouped[index] for index in sorted(grouped)]


def _name_errors(objects: list[_Box], detections: list[_Box]) -> list[tuple[str, int]]:
    """The error type (empty if correct) and the target of each detection in an image."""
    if not objects:
        return [("background", -1)] * len(detections)
    if not detections:
        return []
    overlaps = mask.iou([item.box for item in detections], [item.box for item in objects], [0] * len(objects))
    categories = np.array([item.category for item in objects])
    found = np.array([item.matched for item in objects])
    return [
        ("", -1) if item.matched else _name_error(overlap, categories == item.category, found)
        for item, overlap in zip(detections, overlaps, strict=True)
    ]


def _name_error(overlap: Array, same_class: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[str, int]:
    same, other = overlap * same_class, overlap * ~same_class
    if BACKGROUND <= same.max() < FOREGROUND:
        return "localization", int(same.argmax())
    if other.max() >= FOREGROUND:
        return "classification", int(other.argmax())
    if (same * found).max() >= FOREGROUND:
        return "duplicate", -1
    if overlap.max() < BACKGROUND:
        return "background", -1
    return "both", -1
