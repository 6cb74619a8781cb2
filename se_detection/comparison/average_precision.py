"""COCO's AP and AR on weighted images, for a fast bootstrap over images.

An image of weight w counts as if it were in the data set w times. Boxes are matched once; only the precision-recall
curves are computed for each set of weights.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .matching import COCO_AREAS, Array, CategoryEvaluation, Matches

# Detections times sets of weights that are processed at once, so that the arrays fit the CPU cache.
CHUNK = 1 << 18


@dataclass(frozen=True)
class CategoryAP:
    """AP and AR of one category, from 0 to 1, for each set of image weights; NaN where there are no objects.

    `thresholds` is AP at each IoU threshold, (thresholds, sets); `areas` is AP in each range of areas, (areas, sets);
    `recalls` is AR at 1, 10 and 100 detections an image and, at 100, for small, medium and large objects, (6, sets).
    """

    thresholds: Array
    areas: Array
    recalls: Array


def average_precision(evaluation: CategoryEvaluation, weights: Array) -> CategoryAP:
    """A category's AP and AR.

    With all weights 1, they equal those of `COCOeval.accumulate`; with whole numbers, they equal those of a data set
    in which each image is repeated that many times.

    Args:
        evaluation: from :func:`match_boxes`.
        weights: (images, sets), images in the order of their ids.
    """
    params = evaluation.params
    matches = [Matches.of(evaluation, area) for area in range(len(params.areaRng))]
    precision = [_precision(matched, weights, params.recThrs) for matched in matches]
    recalls = [_recall(matches[0], weights, limit) for limit in params.maxDets]
    recalls += [_recall(matched, weights, params.maxDets[-1]) for matched in matches[1 : len(COCO_AREAS)]]
    return CategoryAP(precision[0], np.array([values.mean(axis=0) for values in precision]), np.array(recalls))


def _precision(matches: Matches, weights: Array, levels: Array) -> Array:
    """AP at each threshold: (thresholds, sets)."""
    positives = matches.objects @ weights[matches.objects_image]
    result = np.full((len(matches.hit), weights.shape[1]), np.nan)
    # Detections after the last hit don't change AP, nor do those that are ignored at every threshold.
    last = np.flatnonzero(matches.hit.any(axis=0)).max(initial=-1) + 1
    used = np.flatnonzero(matches.counted[:, :last].any(axis=0))
    step = max(1, CHUNK // max(1, len(used)))
    for start in range(0, weights.shape[1], step):
        part = slice(start, start + step)
        weight = weights[:, part][matches.image[used]]
        for row, hit, counted in zip(result, matches.hit[:, used], matches.counted[:, used], strict=True):
            row[part] = area_under_curve(hit, counted, weight, positives[part], levels)
    return result


def area_under_curve(
    hit: NDArray[np.bool_], counted: NDArray[np.bool_], weight: Array, positives: Array, levels: Array
) -> Array:
    """COCO's interpolated precision, averaged over recall levels: (sets,); NaN where there are no objects.

    Args:
        hit: (detections,), in descending order of score: whether the detection matches an object.
        counted: (detections,), whether it is not ignored.
        weight: (detections, sets), the weight of its image.
        positives: (sets,), the weighted number of objects.
        levels: the recall levels, equally spaced from 0 to 1.
    """
    if not hit.any():
        return np.where(positives > 0, 0.0, np.nan)
    # Precision has its maxima at the hits, so it is computed only there; detections between two hits are summed.
    hits = np.flatnonzero(hit)
    after = np.concatenate([[0], hits[:-1] + 1])
    until_last = slice(hits[-1] + 1)
    counted_weight = weight[until_last] if counted.all() else weight[until_last] * counted[until_last, None]
    total = np.cumsum(np.add.reduceat(counted_weight, after, axis=0), axis=0)
    true = np.cumsum(weight[hits], axis=0)
    precision = true / (total + np.spacing(1))
    interpolated = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = true / np.where(positives > 0, positives, 1.0)
    # The number of levels that each recall reaches. The nearest level is not reached if it is above the recall.
    nearest = np.rint(recall * (len(levels) - 1)).astype(np.intp)
    reached = nearest + (levels[nearest] <= recall)
    area = (interpolated * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(levels)
    return np.where(positives > 0, area, np.nan)


def _recall(matches: Matches, weights: Array, limit: int) -> Array:
    """Recall with the `limit` highest-scoring detections of each image, averaged over thresholds: (sets,)."""
    positives = matches.objects @ weights[matches.objects_image]
    hits = (matches.hit & (matches.rank < limit)).mean(axis=0)
    found = np.bincount(matches.image, hits, minlength=len(weights)) @ weights
    return np.divide(found, positives, out=np.full(len(positives), np.nan), where=positives > 0)
