"""COCO's AP and AR of weighted images, which makes a bootstrap over images fast.

An image of weight w counts as if it were in the data set w times: boxes are matched once, and only the
precision-recall curves are made anew for every set of weights.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .matching import COCO_AREAS, Array, CategoryEvaluation, Matches

# Detections times sets of weights that are worked on at once, so that the arrays stay in the processor's cache.
CHUNK = 1 << 18


@dataclass(frozen=True)
class CategoryAP:
    """One category's figures, from 0 to 1, for every set of image weights; NaN where there is nothing to find.

    `thresholds` is AP at each IoU threshold, (thresholds, sets); `areas` AP in each range of areas, (areas, sets);
    `recalls` AR at 1, 10 and 100 detections an image and, at 100, of small, medium and large objects, (6, sets).
    """

    thresholds: Array
    areas: Array
    recalls: Array


def average_precision(evaluation: CategoryEvaluation, weights: Array) -> CategoryAP:
    """A category's AP and AR.

    With weights 1 they are what `COCOeval.accumulate` gives; with whole numbers, what it would give on images repeated
    so often.

    Args:
        evaluation: of :func:`match_boxes`.
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
    # Nothing after the last hit changes AP, nor does what counts at no threshold.
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
    """COCO's interpolated precision, averaged over recall levels: (sets,); NaN where there is nothing to find.

    Args:
        hit: of each detection, by falling score: it found an object.
        counted: it counts.
        weight: (detections, sets), those of its image.
        positives: (sets,), the weighted number of objects.
        levels: the recall levels, equally spaced from 0 to 1.
    """
    if not hit.any():
        return np.where(positives > 0, 0.0, np.nan)
    # Precision has its maxima at the hits, so it is taken nowhere else: what lies between two of them is summed.
    hits = np.flatnonzero(hit)
    after = np.concatenate([[0], hits[:-1] + 1])
    until_last = slice(hits[-1] + 1)
    mine = weight[until_last] if counted.all() else weight[until_last] * counted[until_last, None]
    seen = np.cumsum(np.add.reduceat(mine, after, axis=0), axis=0)
    true = np.cumsum(weight[hits], axis=0)
    precision = true / (seen + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = true / np.where(positives > 0, positives, 1.0)
    # How many levels a recall reaches; the nearest one is not reached if it is above, however little.
    nearest = np.rint(recall * (len(levels) - 1)).astype(np.intp)
    reached = nearest + (levels[nearest] <= recall)
    area = (best_from_here * np.diff(reached, axis=0, prepend=0)).sum(axis=0) / len(levels)
    return np.where(positives > 0, area, np.nan)


def _recall(matches: Matches, weights: Array, limit: int) -> Array:
    """The part of the objects that an image's first `limit` detections find, averaged over thresholds: (sets,)."""
    positives = matches.objects @ weights[matches.objects_image]
    hits = (matches.hit & (matches.rank < limit)).mean(axis=0)
    found = np.bincount(matches.image, hits, minlength=len(weights)) @ weights
    return np.divide(found, positives, out=np.full(len(positives), np.nan), where=positives > 0)
