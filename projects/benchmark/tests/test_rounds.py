import numpy as np
import pytest

from ..rounds import clock_of, rounds_in_turn


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
        list(rounds_in_turn({name: machine.busy(name, 1.0) for name in "abc"}, 30, clock=machine.clock, seed=seed))
        return machine.ran

    first = orders(0)[::3]
    assert all(4 < first.count(name) < 17 for name in "abc")
    assert orders(0) == orders(0) != orders(1)


def test_the_cpu_clock_advances() -> None:
    clock = clock_of("cpu")
    assert clock() < clock()
