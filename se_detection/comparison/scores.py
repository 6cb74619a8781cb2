"""The metrics of one run, on the original images and on each bootstrap sample of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from ..data.coco_format import Entry
from .average_precision import average_precision
from .details import RunDetails, describe
from .matching import COCO_AREAS, THRESHOLDS, Area, Array, match_boxes

# The index of each metric's range of areas in COCO_AREAS.
METRICS = {
    **{"AP": 0, "AP50": 0, "AP75": 0, "APs": 1, "APm": 2, "APl": 3},
    **{"AR1": 0, "AR10": 0, "AR100": 0, "ARs": 1, "ARm": 2, "ARl": 3},
}


@dataclass(frozen=True)
class Scores:
    """COCO metrics by name, and AP by class, IoU threshold and size: arrays of (sets of weights,), in percent."""

    metrics: dict[str, Array]
    by_class: list[Array]
    by_iou: list[Array]
    by_size: list[Array]
    details: RunDetails


def score_run(
    coco: COCO, results: list[Entry], weights: Array, sizes: list[Area], progress: Callable[[], object]
) -> Scores:
    """Evaluates a run.

    Args:
        coco: from :func:`load_annotations`.
        results: from :func:`load_results`.
        weights: (images, sets), see :func:`image_weights`; the details are unweighted.
        sizes: ranges of area, in addition to COCO's.
        progress: called after each category.
    """
    evaluations, categories = [], []
    for evaluation in match_boxes(coco, results, (*COCO_AREAS, *sizes)):
        categories.append(average_precision(evaluation, weights))
        # The details need only the first range of areas; keeping all ranges of all categories takes too much memory.
        del evaluation.evalImgs[len(evaluation.image_indices) :]
        evaluations.append(evaluation)
        progress()
    by_iou = _mean_of_defined([category.thresholds for category in categories])
    by_area = _mean_of_defined([category.areas for category in categories])
    recalls = _mean_of_defined([category.recalls for category in categories])
    at50, at75 = (by_iou[int(np.isclose(THRESHOLDS, iou).argmax())] for iou in (0.5, 0.75))
    rows = [by_area[0], at50, at75, *by_area[1 : len(COCO_AREAS)], *recalls]
    return Scores(
        dict(zip(METRICS, rows, strict=True)),
        [100 * category.areas[0] for category in categories],
        list(by_iou),
        list(by_area[len(COCO_AREAS) :]),
        describe(evaluations),
    )


def _mean_of_defined(values: list[Array]) -> Array:
    """The mean over the categories where the value is defined, in percent."""
    total, count = np.zeros_like(values[0]), np.zeros_like(values[0])
    for item in values:
        total += np.nan_to_num(item)
        count += np.isfinite(item)
    return 100 * np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
