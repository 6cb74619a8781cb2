"""COCO's AP of weighted images, which makes a bootstrap over images fast.

An image of weight w counts as if it were in the data set w times: boxes are matched once by pycocotools, and only the
precision-recall curves are made anew for every set of weights.
"""

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Array = NDArray[np.float64]

# Each metric's area range and IoU thresholds, as positions in COCOeval's parameters.
METRICS = {
    "AP": (0, slice(None)),
    "AP50": (0, slice(0, 1)),
    "AP75": (0, slice(5, 6)),
    "APs": (1, slice(None)),
    "APm": (2, slice(None)),
    "APl": (3, slice(None)),
}
# So many sets of weights are worked on at once that the arrays stay small.
CHUNK = 256


def load_coco(dataset: dict[str, Any]) -> COCO:
    """pycocotools' index of `images`, `annotations` and `categories`, without its messages."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def match_boxes(annotations: COCO, detections: list[dict[str, Any]]) -> COCOeval:
    """pycocotools' box evaluation up to the matching; the detections, in COCO's results format, are changed by it."""
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes can't take an empty list.
        empty = {**annotations.dataset, "annotations": []}
        found = annotations.loadRes(detections) if detections else load_coco(empty)
        evaluation = COCOeval(annotations, found, "bbox")
        evaluation.evaluate()
    return evaluation


def average_precision(evaluation: COCOeval, weights: Array) -> dict[str, Array]:
    """AP, AP50, AP75, APs, APm and APl, from 0 to 1, for every set of image weights; NaN where no box is of that size.

    With weights 1 it is what `COCOeval.accumulate` and `summarize` give; with whole numbers, what they would give on
    images repeated so often.

    Args:
        evaluation: of :func:`match_boxes`.
        weights: (sets, images), images in the order of their ids.

    Returns:
        An array (sets,) for each metric.
    """
    chunks = [weights[start : start + CHUNK] for start in range(0, len(weights), CHUNK)]
    parts = [_average_precision(evaluation, chunk) for chunk in chunks]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}


def _average_precision(evaluation: COCOeval, weights: Array) -> dict[str, Array]:
    params = evaluation.params
    shape = (len(params.catIds), len(params.areaRng), len(params.imgIds))
    by_category: dict[str, list[Array]] = {metric: [] for metric in METRICS}
    for category in np.array(evaluation.evalImgs, dtype=object).reshape(shape):
        by_area = [_by_threshold(images, weights, params) for images in category]
        for metric, (area, thresholds) in METRICS.items():
            by_category[metric].append(by_area[area][thresholds].mean(axis=0))
    return {metric: _mean_of_defined(values, len(weights)) for metric, values in by_category.items()}


def _by_threshold(images: NDArray[np.object_], weights: Array, params: Any) -> Array:
    """One category's AP in one area range at each IoU threshold: (thresholds, sets)."""
    kept = [index for index, image in enumerate(images) if image is not None]
    result = np.full((len(params.iouThrs), len(weights)), np.nan)
    objects = np.array([np.count_nonzero(images[index]["gtIgnore"] == 0) for index in kept], dtype=float)
    if not objects.any():
        return result
    positives = weights[:, kept] @ objects
    scores = np.concatenate([images[index]["dtScores"] for index in kept])
    order = np.argsort(-scores, kind="stable")
    image = np.repeat(kept, [len(images[index]["dtScores"]) for index in kept])[order]
    matched = np.concatenate([images[index]["dtMatches"] for index in kept], axis=1)[:, order] != 0
    ignored = np.concatenate([images[index]["dtIgnore"] for index in kept], axis=1)[:, order] != 0
    for row, hits, misses in zip(result, matched & ~ignored, ~matched & ~ignored, strict=True):
        row[:] = _area_under_curve(
            np.flatnonzero(hits), np.flatnonzero(misses), weights, image, positives, params.recThrs
        )
    return result


def _area_under_curve(
    hits: NDArray[np.intp],
    misses: NDArray[np.intp],
    weights: Array,
    image: NDArray[np.intp],
    positives: Array,
    recalls: Array,
) -> Array:
    """COCO's interpolated precision, averaged over the recall levels: (sets,).

    Args:
        hits: ranks of the detections that found an object; precision has its maxima there, so it is taken nowhere else.
        misses: ranks of those that found none.
        weights: (sets, images).
        image: the image of each rank.
        positives: (sets,), the weighted number of objects.
        recalls: the recall levels, rising.
    """
    misses_before = np.searchsorted(misses, hits)
    true = np.take(weights, image[hits], axis=1).cumsum(axis=1)
    false = np.take(weights, image[misses[: misses_before.max(initial=0)]], axis=1).cumsum(axis=1)
    false = np.take(np.pad(false, ((0, 0), (1, 0))), misses_before, axis=1)
    precision = true / (true + false + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.where(positives > 0, positives, np.nan)[:, None]
    levels_reached = np.searchsorted(recalls, recall, side="right")
    levels = np.diff(levels_reached, axis=1, prepend=0)
    area = (best_from_here * levels).sum(axis=1) / len(recalls)
    return np.where(positives > 0, area, np.nan)


def _mean_of_defined(values: list[Array], size: int) -> Array:
    """The mean over categories, (size,), of those where it is defined."""
    stacked = np.array(values).reshape(-1, size)
    defined = np.isfinite(stacked)
    count = defined.sum(axis=0)
    total: Array = np.where(defined, stacked, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
