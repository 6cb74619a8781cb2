"""Everything about one run that a comparison needs, on the images themselves and on those of each bootstrap sample."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from ..data.coco_format import Entry
from .average_precision import average_precision
from .details import RunDetails, describe
from .matching import COCO_AREAS, THRESHOLDS, Area, Array, match_boxes

# Each metric's range of areas, as a place in COCO's.
METRICS = {
    **{"AP": 0, "AP50": 0, "AP75": 0, "APs": 1, "APm": 2, "APl": 3},
    **{"AR1": 0, "AR10": 0, "AR100": 0, "ARs": 1, "ARm": 2, "ARl": 3},
}


@dataclass(frozen=True)
class Scores:
    """COCO's metrics by name, and AP by class, by IoU threshold and by size: (sets of weights,) each, in percent."""

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
        coco: of :func:`load_annotations`.
        results: of :func:`load_results`.
        weights: (images, sets); details are of the images themselves.
        sizes: ranges of area besides COCO's.
        progress: called after each category.
    """
    evaluations, categories = [], []
    for evaluation in match_boxes(coco, results, (*COCO_AREAS, *sizes)):
        categories.append(average_precision(evaluation, weights))
        # Details need the first range alone; all of them, of all categories, would fill the memory.
        del evaluation.evalImgs[len(evaluation.places) :]
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
    """The mean over categories, in percent, of those where it is defined."""
    total, count = np.zeros_like(values[0]), np.zeros_like(values[0])
    for item in values:
        total += np.nan_to_num(item)
        count += np.isfinite(item)
    return 100 * np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
