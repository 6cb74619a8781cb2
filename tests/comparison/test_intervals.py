import numpy as np
import pytest

from se_detection.comparison.intervals import Difference, Estimate, benjamini_hochberg, estimate


def simulate(rng, runs, images, seed_sd, shift=0.0, samples=200):
    """Mean scores on the images and on bootstrap samples; a score depends on image, model, run and chance."""
    weights = np.column_stack([np.ones(images), rng.multinomial(images, np.full(images, 1 / images), size=samples).T])
    image = rng.normal(size=images)
    models = []
    for model, count in enumerate(runs):
        mine = image + 0.5 * rng.normal(size=images) + model * shift
        scores = mine + seed_sd * rng.normal(size=(count, 1)) + rng.normal(size=(count, images))
        models.append(scores @ weights / images)
    return models


@pytest.mark.parametrize(
    ("runs", "seed_sd"),
    [((1, 1), 0), ((2, 2), 0), pytest.param((2, 2), 1, marks=pytest.mark.slow), ((2, 5), 0.5)],
)
def test_intervals_of_equal_models_include_zero_95_times_in_100(runs, seed_sd) -> None:
    rng = np.random.default_rng([*runs, int(10 * seed_sd)])
    found = [estimate(*simulate(rng, runs, 30, seed_sd), 30).difference() for _ in range(300)]
    misses = sum(not item.low <= 0 <= item.high for item in found)
    # 15 are expected (5 %), with a tolerance of three standard deviations (11). Equal runs give wider intervals.
    assert 2 <= misses <= 26


def test_a_bootstrap_over_images_alone_ignores_the_variance_of_training() -> None:
    rng = np.random.default_rng(0)
    pairs = [simulate(rng, (2, 2), 30, 1) for _ in range(100)]
    images_alone = [estimate(first[:1], second[:1], 30).difference() for first, second in pairs]
    assert sum(not item.low <= 0 <= item.high for item in images_alone) > 40


def test_a_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    found = [estimate(*simulate(rng, (3, 3), 50, 0.1, shift=2), 50).difference() for _ in range(20)]
    assert all(item.low > 0 for item in found)
    assert sum(item.low <= 2 <= item.high for item in found) >= 17


def test_without_variance_over_images_the_interval_is_students_t() -> None:
    # Student's t of 1, 2, 4 and 5, 6, 7, 9 with pooled variance, by hand.
    first, second = (np.repeat(np.array([values]).T, 101, axis=1) for values in ([1.0, 2, 4], [5.0, 6, 7, 9]))
    pooled = ((16 + 1 + 25) / 9 + (49 + 9 + 1 + 81) / 16) / 5
    reach = 2.570582 * (pooled * (1 / 3 + 1 / 4)) ** 0.5
    found = estimate(first, second, 1000).difference()
    assert (found.value, found.low, found.high) == pytest.approx((53 / 12, 53 / 12 - reach, 53 / 12 + reach), abs=1e-5)
    # The p-value of 2.570582 standard errors is 5 %.
    assert Estimate(2.570582, 1.0, 5).p_value() == pytest.approx(0.05, abs=1e-6)


def test_identical_runs_leave_only_the_variance_over_images() -> None:
    rng = np.random.default_rng(0)
    first, second = simulate(rng, (1, 1), 20, 0)
    alone = estimate(first, second, 20)
    twice = estimate(np.repeat(first, 2, axis=0), np.repeat(second, 2, axis=0), 20)
    assert twice.error == pytest.approx(alone.error)
    assert twice.degrees == alone.degrees == 19
    sampled = second[0, 1:] - first[0, 1:]
    assert alone.error == pytest.approx(sampled.std(ddof=1) * (20 / 19) ** 0.5)


def test_the_same_runs_in_another_order_do_not_differ() -> None:
    first, _ = simulate(np.random.default_rng(0), (3, 3), 20, 1)
    found = estimate(first, first[[2, 0, 1]], 20).difference()
    assert found.value == 0
    assert found.low <= 0 <= found.high


def test_unknown_values_are_none() -> None:
    ones, undefined = np.ones((2, 101)), np.full((2, 101), np.nan)
    # As text: NaN, the degrees of freedom, differs from itself.
    assert str(estimate(undefined, undefined, 50)) == str(Estimate(None))
    assert estimate(ones, 2 * ones, 9).difference() == Difference(1.0)
    assert estimate(ones, 2 * ones, 9).p_value() is None
    assert estimate(ones, ones, 50).difference() == Difference(0, 0, 0)
    assert estimate(ones, ones, 50).p_value() == 1
    # Samples without objects are skipped.
    holes = np.random.default_rng(0).normal(size=(2, 101))
    partly = np.column_stack([holes, np.full(2, np.nan)])
    assert str(estimate(partly[:1], partly[1:], 50)) == str(estimate(holes[:1], holes[1:], 50))


def test_p_values_are_adjusted_as_in_r() -> None:
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "BH")
    assert benjamini_hochberg([0.01, None, 0.04, 0.03, 0.005]) == [
        *(pytest.approx(0.02), None, pytest.approx(0.04), pytest.approx(0.04), pytest.approx(0.02)),
    ]
    assert benjamini_hochberg([None]) == [None]
