"""How sure a difference between two detectors is, over images and, with several runs of each, over training.

Images play the part of cases, training runs that of readers, and the two detectors that of two tests in a reading
study, where each reader reads all cases and each test has readers of its own. The analysis is that of such studies:
Obuchowski and Rockette, *Communications in Statistics - Simulation and Computation* 24, 1995, with the degrees of
freedom of Hillis, *Statistics in Medicine* 26, 2007; the covariances come from a bootstrap over images. A bootstrap
over runs as well would be too narrow: from two or three runs there is little to draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
# Of the classes that are said to differ, the part that does not.
FALSE_DISCOVERY_RATE = 0.05
ROUNDING = 1e-9
# With fewer, what is drawn from them says little about other images.
MIN_IMAGES = 10


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline, with its 95 % interval; None where it is undefined or where there is no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error, and the degrees of freedom of that; the latter None where they are unknown."""

    value: float | None
    error: float | None = None
    degrees: float | None = None

    def difference(self) -> Difference:
        """With the 95 % interval of Student's t."""
        if self.value is None or self.error is None or self.degrees is None:
            return Difference(self.value)
        reach = self.error * t_quantile(CONFIDENCE, self.degrees)
        return Difference(self.value, self.value - reach, self.value + reach)

    def p_value(self) -> float | None:
        """Of the hypothesis that there is no difference, two-sided."""
        if self.value is None or self.error is None or self.degrees is None:
            return None
        if self.error == 0:
            return float(self.value == 0)
        return t_tails(abs(self.value) / self.error, self.degrees)


def estimate(baseline: Array, candidate: Array, images: int) -> Estimate:
    """The difference of the means of two detectors' runs.

    With at least two runs of each, it is about other images and other runs; otherwise about other images alone.

    Args:
        baseline: (runs, 1 + samples): a metric of each run on the images themselves and on the samples of a bootstrap
            over images, the same for all runs; NaN where it is undefined.
        candidate: the same.
        images: how many of the images the metric depends on; below 10 there is no standard error.
    """
    arms = [baseline, candidate]
    value = float(candidate[:, 0].mean() - baseline[:, 0].mean())
    if np.isnan(value):
        return Estimate(None)
    # The same runs, added up in another order.
    value = 0.0 if abs(value) < ROUNDING else value
    drawn = np.vstack(arms)[:, 1:]
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
    if images < MIN_IMAGES or drawn.shape[1] < 2:
        return Estimate(value)
    # The bootstrap's variance is that of n images around their own mean: too small by (n - 1) / n.
    correction = images / (images - 1)
    runs = [len(arm) for arm in arms]
    difference = drawn[runs[0] :].mean(axis=0) - drawn[: runs[0]].mean(axis=0)
    over_images = float(difference.var(ddof=1)) * correction
    if min(runs) < 2:
        return Estimate(value, over_images**0.5, images - 1)
    covariance = np.cov(drawn) * correction
    freedom = sum(runs) - 2
    spread = sum(float(((arm[:, 0] - arm[:, 0].mean()) ** 2).sum()) for arm in arms) / freedom
    over_runs = spread * (1 / runs[0] + 1 / runs[1])
    shared = _between_runs(covariance[: runs[0], : runs[0]]) + _between_runs(covariance[runs[0] :, runs[0] :])
    shared -= 2 * float(covariance[: runs[0], runs[0] :].mean())
    # Runs that happen to agree don't make the images more.
    variance = max(over_runs + max(shared, 0.0), over_images)
    degrees = min(variance**2 * freedom / over_runs**2, images - 1) if over_runs else images - 1
    return Estimate(value, variance**0.5, degrees)


def _between_runs(covariance: Array) -> float:
    """The mean covariance of two different runs of a detector."""
    runs = len(covariance)
    return float((covariance.sum() - np.trace(covariance)) / (runs * (runs - 1)))


def t_quantile(confidence: float, degrees: float) -> float:
    """The t that is not exceeded in absolute value with this probability; `degrees` of freedom are at least 1."""
    angle, probability = _t_distribution(degrees)
    return float(degrees**0.5 * np.tan(np.interp(confidence, probability, angle)))


def t_tails(t: float, degrees: float) -> float:
    """The probability of a larger absolute value."""
    angle, probability = _t_distribution(degrees)
    return float(1 - np.interp(np.arctan(t / degrees**0.5), angle, probability))


def _t_distribution(degrees: float) -> tuple[Array, Array]:
    """P(|T| < sqrt(degrees) tan(angle)): with that substitution, Student's density is a power of the cosine."""
    angle = np.linspace(0, np.pi / 2, 20001)
    density = np.abs(np.cos(angle)) ** (degrees - 1)
    integral = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return angle, integral / integral[-1]


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number, so that those up to q hold a part q of false ones on average.

    Benjamini and Hochberg, *Journal of the Royal Statistical Society B* 57, 1995. None stays None, and is not counted.
    """
    known = [index for index, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[index] for index in known], dtype=float)
    order = np.argsort(-p)
    adjusted = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    result: list[float | None] = [None] * len(p_values)
    for place, number in zip(order, adjusted, strict=True):
        result[known[place]] = float(min(number, 1.0))
    return result
