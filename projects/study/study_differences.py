"""Differences between a study's variants and its baseline, on each data set and over all of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from se_detection.comparison.intervals import Difference, Estimate, estimate

from .definition import Study
from .run_records import Record, Records

METRICS = ("AP", "AP50")


class VariantResult(NamedTuple):
    """A variant on a data set, or on all of them (`data` is then empty, and there are no runs)."""

    data: str
    variant: str
    runs: Sequence[Record]
    differences: Mapping[str, Difference]


def variant_results(study: Study, records: Records) -> list[VariantResult]:
    """The runs of each variant with its differences to the baseline; then the differences over the data sets.

    The intervals of one metric on one data set (or over all of them) cover all their differences together with 95 %.
    On a data set they are over images and trainings, as in `se-det compare`. Over the data sets, they are those of
    Student's t for the mean of the data sets' differences, which makes the data sets a random factor.
    """
    others = len(study.variants) - 1
    results = []
    values: dict[tuple[str, str], list[float]] = {}
    for data, variants in records.items():
        base = list(variants[study.baseline].values())
        for variant, by_seed in variants.items():
            runs = list(by_seed.values())
            differences = {}
            if base and runs and variant != study.baseline:
                for metric in METRICS:
                    found = _estimate(base, runs, metric)
                    differences[metric] = found.difference(others)
                    if found.value is not None:
                        values.setdefault((variant, metric), []).append(found.value)
            if runs:
                results.append(VariantResult(data, variant, runs, differences))
    if len(study.data) > 1:
        for variant in list(study.variants)[1:]:
            complete = {metric: values.get((variant, metric), []) for metric in METRICS}
            if all(len(known) == len(study.data) for known in complete.values()):
                over = {metric: _over_data_sets(known).difference(others) for metric, known in complete.items()}
                results.append(VariantResult("", variant, [], over))
    return results


def _estimate(base: Sequence[Record], runs: Sequence[Record], metric: str) -> Estimate:
    first, second = (np.array([run["bootstrap"][metric] for run in group], dtype=float) for group in (base, runs))
    return estimate(first, second, base[0]["images"][metric])


def _over_data_sets(values: Sequence[float]) -> Estimate:
    count = len(values)
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / count**0.5, count - 1)
