"""How two detectors differ: error types, precision-recall, AP by IoU threshold and object size, calibration."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from ..data.coco_files import silenced
from .error_types import ErrorType, error_types
from .intervals import Difference, without_nan
from .matching import Area, Array, CategoryEvaluation, Matches

SCORE_BINS = 10
SIZES = 6
# The IoU thresholds of the precision-recall curves, and their indices in THRESHOLDS.
CURVES = {"0.50": 0, "0.75": 5}


@dataclass(frozen=True)
class Curve:
    """Both detectors' values in percent at each `x`, None where undefined; precision-recall has no differences."""

    x: list[float]
    baseline: list[float | None]
    candidate: list[float | None]
    difference: list[Difference] | None = None

    def rows(self, form: str) -> list[tuple[str, float | None, float | None, Difference]]:
        """The formatted `x`, both values and their difference at each `x`."""
        x = map(form.format, self.x)
        return list(zip(x, self.baseline, self.candidate, self.difference or [], strict=True))


@dataclass(frozen=True)
class Calibration:
    """Mean score and precision at IoU 0.5, from 0 to 1, in ten equal bins of the score; None in empty bins.

    `ece` is the expected calibration error: the mean distance between score and precision, weighted by the number of
    detections (Guo et al., *On Calibration of Modern Neural Networks*, 2017, section 2). With several runs, the bins
    hold the detections of all runs, and `ece` is the mean over runs.
    """

    score: list[float | None]
    precision: list[float | None]
    count: list[int]
    ece: float


@dataclass(frozen=True)
class RunDetails:
    """One run's errors by type, precision by IoU threshold and recall, and scores with correctness at IoU 0.5."""

    errors: dict[str, ErrorType]
    precision: dict[str, Array]
    score: Array
    correct: NDArray[np.bool_]


def describe(evaluations: Sequence[CategoryEvaluation]) -> RunDetails:
    """The details of a run.

    Args:
        evaluations: from :func:`match_boxes`, for all categories.
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
        {name: mean[index] for name, index in CURVES.items()},
        np.concatenate([match.score[keep] for match, keep in zip(matches, counted, strict=True)]),
        np.concatenate([match.hit[0][keep] for match, keep in zip(matches, counted, strict=True)]),
    )


def size_ranges(annotations: COCO) -> list[Area]:
    """Six ranges of area, in pixels, with the same number of objects; fewer if many objects have the same size."""
    areas = [item["area"] for item in annotations.anns.values() if not item["iscrowd"]]
    if not areas:
        return []
    edges = np.unique(np.quantile(areas, np.linspace(0, 1, SIZES + 1)))
    return list(pairwise(map(float, edges)))


def mean_errors(runs: Sequence[RunDetails]) -> dict[str, ErrorType]:
    """The mean of each error type over a detector's runs."""
    return {
        name: ErrorType(
            float(np.mean([run.errors[name].dap for run in runs])),
            float(np.mean([run.errors[name].count for run in runs])),
        )
        for name in runs[0].errors
    }


def precision_recall(baseline: Sequence[RunDetails], candidate: Sequence[RunDetails]) -> dict[str, Curve]:
    """Mean precision over categories and runs at recall 0, 1, ..., 100 %, by IoU threshold."""
    curves = {}
    for name in CURVES:
        means = (100 * np.mean([run.precision[name] for run in runs], axis=0) for runs in (baseline, candidate))
        first, second = map(without_nan, means)
        curves[name] = Curve([float(percent) for percent in range(101)], first, second)
    return curves


def calibration(runs: Sequence[RunDetails]) -> Calibration | None:
    """A detector's calibration; None if a run has no detections, or scores outside 0 to 1."""
    scores = [run.score for run in runs]
    if not all(len(score) and 0 <= score.min() and score.max() <= 1 for score in scores):
        return None
    count, score, precision = _bins(np.concatenate(scores), np.concatenate([run.correct for run in runs]))
    errors = []
    for run in runs:
        n, s, p = _bins(run.score, run.correct)
        errors.append(float(np.nansum(n * np.abs(s - p)) / n.sum()))
    return Calibration(without_nan(score), without_nan(precision), count.astype(int).tolist(), float(np.mean(errors)))


def _bins(score: Array, correct: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """The number of detections, their mean score and their precision in each bin: (bins,) each."""
    # Imported here because it takes a second.
    from scipy.stats import binned_statistic

    count, _ = np.histogram(score, SCORE_BINS, (0, 1))
    mean, precision = binned_statistic(score, [score, correct], "mean", SCORE_BINS, (0, 1)).statistic
    return count, mean, precision
