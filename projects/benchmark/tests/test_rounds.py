import numpy as np
import pytest

from ..rounds import paired_ratio, rounds_in_turn


class Machine:
    """A machine whose time passes only while something runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def busy(self, name: str, seconds: float):
        def run() -> None:
            self.ran.append(name)
            self.now += seconds * (1 + len(self.ran) // 3)  # slower from round to round

        return run


def test_each_candidate_runs_once_per_round_and_is_timed() -> None:
    machine = Machine()
    runs = {"stock": machine.busy("stock", 1.0), "double": machine.busy("double", 2.0)}
    rounds = list(rounds_in_turn(runs, 40, clock=machine.clock))
    assert [sorted(rounds[place]) for place in range(40)] == [["double", "stock"]] * 40
    assert all(set(machine.ran[2 * place : 2 * place + 2]) == {"stock", "double"} for place in range(40))
    assert sum(map(sum, ([*seconds.values()] for seconds in rounds))) == pytest.approx(machine.now)
    ratios = [seconds["double"] / seconds["stock"] for seconds in rounds]
    assert np.median(ratios) == pytest.approx(2, rel=0.05)


def test_the_order_is_random() -> None:
    def orders(seed: int) -> list[str]:
        machine = Machine()
        list(rounds_in_turn({name: machine.busy(name, 1.0) for name in "abc"}, 30, seed=seed))
        return machine.ran

    first = orders(0)[::3]
    assert all(4 < first.count(name) < 17 for name in "abc")
    assert orders(0) == orders(0) != orders(1)


@pytest.mark.parametrize(
    ("rounds", "low", "high"),
    # Ranks of the median's 95 % interval from tables of the sign test.
    [(5, None, None), (6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (15, 4, 12), (20, 6, 15), (25, 8, 18)],
)
def test_the_interval_has_the_ranks_of_the_sign_test(rounds, low, high) -> None:
    ranks = np.random.default_rng(0).permutation(np.arange(2.0, 2 * rounds + 2, 2))
    ratio = paired_ratio(ranks, np.full(rounds, 2.0))
    assert ratio == ((rounds + 1) / 2, low, high)


def test_a_slowdown_of_whole_rounds_cancels_out() -> None:
    """On a machine that gets slower from round to round, with long-tailed noise."""
    rng = np.random.default_rng(0)
    slower = np.exp(np.cumsum(rng.normal(0, 0.3, (200, 20)), axis=1))
    stock, model = slower * (1 + rng.exponential(0.1, (2, 200, 20)))
    ratios = [paired_ratio(0.8 * m, s) for m, s in zip(model, stock, strict=True)]
    assert np.median([ratio.value for ratio in ratios]) == pytest.approx(0.8, rel=0.01)
    # A ratio of medians would be far noisier.
    assert np.std([ratio.value for ratio in ratios]) < 0.05 < np.std(np.median(model, 1) / np.median(stock, 1))
    # P(5 < Bin(20, 1/2) < 15) = 0.9586, with three standard errors on each side.
    assert np.mean([ratio.low <= 0.8 <= ratio.high for ratio in ratios]) == pytest.approx(0.9586, abs=0.042)
