"""How much AP50 each type of error costs, as in TIDE.

Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, 2020. As there, boxes are matched at
IoU 0.5, an IoU below 0.1 is background, and the dAP of an error type is the gain in AP50 if only these errors were
fixed (the paper's section 3). A detection that fits several types gets the first of localization, classification,
duplicate, background and both, as in the authors' code. Two rules are COCO's instead: detections matched to crowds are
not errors, and AP50 is averaged over the classes that have objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from .average_precision import area_under_curve
from .matching import Array, Box, CategoryEvaluation, boxes_by_image

FOREGROUND, BACKGROUND = 0.5, 0.1
FALSE_POSITIVES = ("classification", "localization", "both", "duplicate", "background")
ERRORS = (*FALSE_POSITIVES, "missed")
# `error` is empty for correct detections; `target` is the index of the object that a detection with a wrong class or
# location would match if it were fixed, or -1.
DETECTION = np.dtype([("category", int), ("score", float), ("hit", bool), ("error", "U16"), ("target", int)])


@dataclass(frozen=True)
class ErrorType:
    """The gain in AP50 without these errors, in percent, and the number of errors."""

    dap: float
    count: float


def error_types(evaluations: Sequence[CategoryEvaluation]) -> dict[str, ErrorType]:
    """dAP and number of each error type, then of all false positives and all false negatives together.

    Args:
        evaluations: from :func:`match_boxes`, for all categories.
    """
    category, found, detections = _classify(evaluations)

    def ap50(chosen: NDArray[np.void], objects: NDArray[np.intp] = category) -> float:
        aps = [
            _ap(chosen[chosen["category"] == number], int((objects == number).sum())) for number in np.unique(category)
        ]
        return 100 * float(np.mean(aps)) if aps else float("nan")

    missed = ~found
    missed[detections["target"][detections["target"] >= 0]] = False
    fixed = {
        **{name: ap50(_fix(detections, name, category, found)) for name in FALSE_POSITIVES},
        "missed": ap50(detections, category[~missed]),
        "false_positives": ap50(detections[detections["hit"]]),
        "false_negatives": ap50(detections, category[found]),
    }
    counts = {
        **{name: int((detections["error"] == name).sum()) for name in FALSE_POSITIVES},
        "missed": int(missed.sum()),
        "false_positives": int((~detections["hit"]).sum()),
        "false_negatives": int((~found).sum()),
    }
    before = ap50(detections)
    return {name: ErrorType(value - before, counts[name]) for name, value in fixed.items()}


def _ap(detections: NDArray[np.void], positives: int) -> float:
    if positives == 0:
        return 0.0
    hit = detections["hit"][np.argsort(-detections["score"], kind="stable")]
    ones = np.ones((len(hit), 1))
    levels = np.linspace(0, 1, 101)
    return float(area_under_curve(hit, np.ones_like(hit), ones, np.array([float(positives)]), levels)[0])


def _fix(
    detections: NDArray[np.void], name: str, category: NDArray[np.intp], found: NDArray[np.bool_]
) -> NDArray[np.void]:
    """Fixes the errors of one type.

    The highest-scoring detection with a missed object as its target becomes a hit; the other wrong ones are removed.
    """
    wrong = detections["error"] == name
    fixable = np.flatnonzero(wrong & (detections["target"] >= 0))
    fixable = fixable[~found[detections["target"][fixable]]]
    fixable = fixable[np.argsort(-detections["score"][fixable], kind="stable")]
    _, first = np.unique(detections["target"][fixable], return_index=True)
    best = fixable[first]
    fixed, kept = detections.copy(), ~wrong
    fixed["hit"][best] = kept[best] = True
    fixed["category"][best] = category[fixed["target"][best]]
    return fixed[kept]


def _classify(
    evaluations: Sequence[CategoryEvaluation],
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.void]]:
    """The category of each object, whether it is found, and the detections."""
    objects: list[Box] = []
    rows = []
    for _, (truth, results) in sorted(boxes_by_image(evaluations).items()):
        for (entry, matched), (error, target) in zip(results, _name_errors(truth, results), strict=True):
            index = target + len(objects) if target >= 0 else -1
            rows.append((entry["category_id"], entry["score"], matched, error, index))
        objects += truth
    category = np.array([entry["category_id"] for entry, _ in objects], dtype=np.intp)
    return category, np.array([matched for _, matched in objects], dtype=bool), np.array(rows, dtype=DETECTION)


def _name_errors(objects: list[Box], detections: list[Box]) -> list[tuple[str, int]]:
    """The error type (empty if correct) and the target of each detection in an image."""
    if not objects or not detections:
        return [("background", -1)] * len(detections)
    boxes, truth = ([entry["bbox"] for entry, _ in entries] for entries in (detections, objects))
    overlaps = mask.iou(boxes, truth, [0] * len(objects))
    categories = np.array([entry["category_id"] for entry, _ in objects])
    found = np.array([matched for _, matched in objects])
    return [
        ("", -1) if matched else _name_error(overlap, categories == entry["category_id"], found)
        for (entry, matched), overlap in zip(detections, overlaps, strict=True)
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
