import numpy as np
import pytest

from ..ratio import paired_ratio


@pytest.mark.parametrize(
    ("rounds", "low", "high"),
    # Ranks of the median's 95 % interval from tables of the sign test.
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)],
)
def test_the_interval_has_the_ranks_of_the_sign_test(rounds, low, high) -> None:
    ranks = np.random.default_rng(0).permutation(np.arange(1.0, rounds + 1))
    ratio = paired_ratio(ranks, np.ones(rounds))
    assert (ratio.value, ratio.low, ratio.high) == ((rounds + 1) / 2, low, high)


def test_fewer_than_six_rounds_have_no_interval() -> None:
    ratio = paired_ratio(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.full(5, 2.0))
    assert (ratio.value, ratio.low, ratio.high) == (1.5, None, None)


def test_the_interval_covers_a_known_ratio() -> None:
    """On a machine that gets slower from round to round, with long-tailed noise."""
    rng = np.random.default_rng(0)
    repeats, rounds, true = 2000, 20, 0.8
    slower = np.exp(np.cumsum(rng.normal(0, 0.3, (repeats, rounds)), axis=1))
    stock, model = slower * (1 + rng.exponential(0.1, (2, repeats, rounds)))
    ratios = [paired_ratio(true * m, s) for m, s in zip(model, stock, strict=True)]
    covered = np.mean([ratio.low <= true <= ratio.high for ratio in ratios])
    # P(5 < Bin(20, 1/2) < 15) = 0.9586, with three standard errors on each side.
    assert 0.945 < covered < 0.972
    assert np.median([ratio.value for ratio in ratios]) == pytest.approx(true, rel=0.005)
    # A ratio of medians would be far noisier.
    assert np.std([ratio.value for ratio in ratios]) < 0.05 < np.std(np.median(model, 1) / np.median(stock, 1))
