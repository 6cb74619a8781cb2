"""Intervals for the difference between two detectors, over images and, with several runs of each, over training.

The model is that of a reading study in radiology: images are the cases, training runs the readers, and the two
detectors the two tests. Each reader reads all cases, and each test has its own readers. The analysis is that of
Obuchowski and Rockette, *Communications in Statistics - Simulation and Computation* 24, 1995, with the degrees of
freedom of Hillis, *Statistics in Medicine* 26, 2007; the covariances come from a bootstrap over images. A bootstrap
over runs would give intervals that are too narrow, because there are only two or three runs to sample from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Array = NDArray[np.float64]

CONFIDENCE = 0.95
# The expected share of false positives among the classes that are reported as different.
FALSE_DISCOVERY_RATE = 0.05
ROUNDING = 1e-9
# With fewer images, a bootstrap says little about other images.
MIN_IMAGES = 10


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline, and its 95 % interval; None where the difference is undefined or has no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error (None where it is unknown) and the degrees of freedom."""

    value: float | None
    error: float | None = None
    degrees: float = np.nan

    def difference(self, comparisons: int = 1) -> Difference:
        """The difference with its 95 % interval, from Student's t distribution.

        Args:
            comparisons: the number of intervals that shall all cover their differences with 95 % (Bonferroni).
        """
        if self.value is None or self.error is None:
            return Difference(self.value)
        reach = self.error * stdtrit(self.degrees, 1 - (1 - CONFIDENCE) / 2 / comparisons).item()
        return Difference(self.value, self.value - reach, self.value + reach)

    def p_value(self) -> float | None:
        """The two-sided p-value for no difference."""
        if self.value is None or self.error is None:
            return None
        if self.error == 0:
            return float(self.value == 0)
        return 2 * stdtr(self.degrees, -abs(self.value) / self.error).item()


def without_nan(values: Array) -> list[float | None]:
    """The values as numbers for JSON, with None for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def estimate(baseline: Array, candidate: Array, images: int) -> Estimate:
    """The difference between the mean metrics of two detectors, with its standard error.

    With two or more runs of each detector, the standard error covers images and runs; otherwise only images.

    Args:
        baseline: (runs, 1 + samples), a metric of each run: first on the original images, then on the bootstrap
            samples, which are the same for all runs; NaN where it is undefined.
        candidate: as `baseline`.
        images: the number of images that the metric depends on; below 10 there is no standard error.
    """
    models = [baseline, candidate]
    value = float(candidate[:, 0].mean() - baseline[:, 0].mean())
    if np.isnan(value):
        return Estimate(None)
    # The same runs in another order differ only by rounding.
    value = 0.0 if abs(value) < ROUNDING else value
    sampled = np.vstack(models)[:, 1:]
    sampled = sampled[:, np.isfinite(sampled).all(axis=0)]
    if images < MIN_IMAGES or sampled.shape[1] < 2:
        return Estimate(value)
    # The bootstrap underestimates the variance by (n - 1) / n: it measures n images around their own mean.
    correction = images / (images - 1)
    runs = [len(model) for model in models]
    difference = sampled[runs[0] :].mean(axis=0) - sampled[: runs[0]].mean(axis=0)
    over_images = float(difference.var(ddof=1)) * correction
    if min(runs) < 2:
        return Estimate(value, over_images**0.5, images - 1)
    covariance = np.cov(sampled) * correction
    freedom = sum(runs) - 2
    spread = sum(float(model[:, 0].var()) * len(model) for model in models) / freedom
    over_runs = spread * (1 / runs[0] + 1 / runs[1])
    shared = _between_runs(covariance[: runs[0], : runs[0]]) + _between_runs(covariance[runs[0] :, runs[0] :])
    shared -= 2 * float(covariance[: runs[0], runs[0] :].mean())
    # Runs that happen to agree must not make the interval narrower than that over images.
    variance = max(over_runs + max(shared, 0.0), over_images)
    degrees = min(variance**2 * freedom / over_runs**2, images - 1) if over_runs else images - 1
    return Estimate(value, variance**0.5, degrees)


def _between_runs(covariance: Array) -> float:
    """The mean covariance of two different runs of a detector."""
    runs = len(covariance)
    return float((covariance.sum() - np.trace(covariance)) / (runs * (runs - 1)))


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusts p-values for their number: of the results with an adjusted p up to q, a share q is false on average.

    Benjamini and Hochberg, *Journal of the Royal Statistical Society B* 57, 1995. None stays None and is not counted.
    """
    # Imported here because it takes a second.
    from scipy.stats import false_discovery_control

    adjusted = iter(false_discovery_control([p for p in p_values if p is not None]).tolist())
    return [None if p is None else next(adjusted) for p in p_values]
