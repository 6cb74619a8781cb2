"""In what two detectors differ: kinds of errors, precision-recall, IoU threshold, object size, score calibration."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from ..data.coco_files import silenced
from .error_types import ErrorType, error_types
from .intervals import Difference
from .matching import Area, Array, CategoryEvaluation, Matches

SCORE_BINS = 10
SIZES = 6
# IoU thresholds of the precision-recall curves, as places in COCO's.
CURVES = {"0.50": 0, "0.75": 5}


@dataclass(frozen=True)
class Curve:
    """Both detectors' figures, in percent, at each `x`; None where undefined. Precision-recall has no differences."""

    x: list[float]
    baseline: list[float | None]
    candidate: list[float | None]
    difference: list[Difference] | None = None


@dataclass(frozen=True)
class Calibration:
    """Mean score and precision at IoU 0.5 by score, in ten equal bins from 0 to 1 (None in empty ones), from 0 to 1.

    `ece` is the expected calibration error: the mean distance of the two, weighted by the number of detections (Guo et
    al., *On Calibration of Modern Neural Networks*, 2017, section 2). Of several runs, bins hold the detections of all,
    and `ece` is the mean.
    """

    score: list[float | None]
    precision: list[float | None]
    count: list[int]
    ece: float


@dataclass(frozen=True)
class RunDetails:
    """Of one run: errors by name, precision by IoU threshold and recall, and whether each detection is right at 0.5."""

    errors: dict[str, ErrorType]
    precision: dict[str, Array]
    score: Array
    right: NDArray[np.bool_]


def describe(evaluations: Sequence[CategoryEvaluation]) -> RunDetails:
    """Details of a run.

    Args:
        evaluations: of :func:`match_boxes`, of all categories.
    """
    matches, precision = [], []
    for evaluation in evaluations:
        matches.append(Matches.of(evaluation, 0))
        params = copy(evaluation.params)
        params.areaRng, params.maxDets = params.areaRng[:1], params.maxDets[-1:]
        with silenced():
            evaluation.accumulate(params)
        precision.append(evaluation.eval["precision"][:, :, 0, 0, 0])
    defined = [values for values in precision if values[0, 0] >= 0]
    mean = np.mean(defined, axis=0) if defined else np.full_like(precision[0], np.nan)
    counted = [match.counted[0] for match in matches]
    return RunDetails(
        error_types(evaluations),
        {name: mean[place] for name, place in CURVES.items()},
        np.concatenate([match.score[mine] for match, mine in zip(matches, counted, strict=True)]),
        np.concatenate([match.hit[0][mine] for match, mine in zip(matches, counted, strict=True)]),
    )


def size_ranges(annotations: COCO) -> list[Area]:
    """Ranges of area, in pixels, that hold as many objects each; fewer than six where many are of one size."""
    areas = [item["area"] for item in annotations.anns.values() if not item["iscrowd"]]
    if not areas:
        return []
    edges = np.unique(np.quantile(areas, np.linspace(0, 1, SIZES + 1)))
    return list(pairwise(map(float, edges)))


def mean_errors(runs: Sequence[RunDetails]) -> dict[str, ErrorType]:
    """Their mean over a detector's runs."""
    return {
        name: ErrorType(
            float(np.mean([run.errors[name].dap for run in runs])),
            float(np.mean([run.errors[name].count for run in runs])),
        )
        for name in runs[0].errors
    }


def precision_recall(baseline: Sequence[RunDetails], candidate: Sequence[RunDetails]) -> dict[str, Curve]:
    """The mean of categories and runs, by IoU threshold, at recall 0, 1, ... 100 %."""
    curves = {}
    for name in CURVES:
        means = (100 * np.mean([run.precision[name] for run in runs], axis=0) for runs in (baseline, candidate))
        first, second = ([None if np.isnan(value) else float(value) for value in mean] for mean in means)
        curves[name] = Curve([float(percent) for percent in range(len(first))], first, second)
    return curves


def calibration(runs: Sequence[RunDetails]) -> Calibration | None:
    """Of a detector; None without detections, or where a score is no probability."""
    scores = [run.score for run in runs]
    if not all(len(score) and 0 <= score.min() and score.max() <= 1 for score in scores):
        return None
    score, right = np.concatenate(scores), np.concatenate([run.right for run in runs])
    count, mean, precision = _bins(score, right)
    errors = []
    for run in runs:
        n, s, p = _bins(run.score, run.right)
        errors.append(float(np.nansum(n * np.abs(s - p)) / n.sum()))
    filled = [
        [float(value) if n else None for value, n in zip(values, count, strict=True)] for values in (mean, precision)
    ]
    return Calibration(filled[0], filled[1], [int(n) for n in count], float(np.mean(errors)))


def _bins(score: Array, right: NDArray[np.bool_]) -> tuple[NDArray[np.intp], Array, Array]:
    """The number of detections, their mean score and the part of them that is right, (bins,) each."""
    place = np.minimum((score * SCORE_BINS).astype(np.intp), SCORE_BINS - 1)
    count = np.bincount(place, minlength=SCORE_BINS)
    sums = (np.bincount(place, values, minlength=SCORE_BINS) for values in (score, right))
    mean, precision = (np.divide(total, count, out=np.full(SCORE_BINS, np.nan), where=count > 0) for total in sums)
    return count, mean, precision
