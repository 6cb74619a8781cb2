import numpy as np
import pytest
import torch

from .. import times as module
from ..arms import ARMS
from ..rows import rows_of
from ..times import WARM_UP, measure_case


class Slow:
    """Arms that take known times of a clock, which is theirs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = {"plain": 1.0, "legacy_seresnet": 3.0, "se": 2.0}

    def prepare(self, arm, case, compile_mode):
        seconds = self.takes[arm.backbone] * (0.5 if arm.fused else 1)

        def run() -> None:
            self.now += seconds

        return run, int(100 * seconds)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def slow(monkeypatch) -> Slow:
    slow = Slow()
    monkeypatch.setattr(module, "_prepare", slow.prepare)
    return slow


def measure(case, arms, clock, **options):
    told = []
    options = {"rounds": 6, "compile_mode": "default", "seed": 0, **options}
    times = measure_case(case, arms, progress=lambda what, passes: told.append((what, passes)), clock=clock, **options)
    return times, told


def test_ratios_of_known_times(make_case, slow) -> None:
    times, told = measure(make_case(), ["stock", "stock-fused", "timm-legacy", "eager", "fused"], slow.clock)
    rows = {row.arm: row for row in rows_of(times, first=0.5)}
    assert {name: row.ratio.value for name, row in rows.items()} == {
        "stock": 1,
        "stock-fused": 0.5,
        "timm-legacy": 3,
        "eager": 2,
        "fused": 1,
    }
    assert {name: row.over_plain and row.over_plain.value for name, row in rows.items()} == {
        "stock": None,
        "stock-fused": None,
        "timm-legacy": None,
        "eager": 2,
        "fused": 2,
    }
    eager = rows["eager"]
    assert (eager.ratio.low, eager.ratio.high, eager.rounds, eager.spread) == (2, 2, 6, 0)
    assert (eager.cost, eager.memory_ratio, eager.median_ms) == (4, 2, None)
    assert sum(passes for _, passes in told) == 5 * (WARM_UP + 6)


def test_what_was_measured_before_ctrl_c_is_kept(make_case, slow) -> None:
    readings = iter(range(2 * 2 * 3 + 1))

    def clock() -> float:
        if next(readings, None) is None:
            raise KeyboardInterrupt
        return slow.now

    times, _ = measure(make_case(), ["stock", "eager"], clock, rounds=9)
    assert times.interrupted
    assert {name: list(seconds) for name, seconds in times.seconds.items()} == {"stock": [1.0] * 3, "eager": [2.0] * 3}


def test_an_arm_that_cant_run_is_left_out_with_its_reason(make_case, slow, monkeypatch) -> None:
    def prepare(arm, case, compile_mode):
        if arm is broken:
            raise NotImplementedError('"conv" not implemented\nfor Half')
        return slow.prepare(arm, case, compile_mode)

    monkeypatch.setattr(module, "_prepare", prepare)
    broken = ARMS["fused"]
    times, _ = measure(make_case(), ["stock", "fused", "eager"], slow.clock)
    assert times.skipped == {"fused": 'NotImplementedError: "conv" not implemented for Half'}
    assert [row.arm for row in rows_of(times, 1.0)] == ["stock", "eager"]
    broken = ARMS["stock"]
    times, _ = measure(make_case(), ["stock", "fused", "eager"], slow.clock)
    assert times.skipped.keys() == {"stock"}
    assert times.seconds == {}


def test_real_arms_and_the_bound(make_case) -> None:
    times, _ = measure(make_case(), ["stock", "eager", "bound"], None, rounds=2)
    assert {name: seconds.shape for name, seconds in times.seconds.items()} == dict.fromkeys(
        ("stock", "eager", "bound"), (2,)
    )
    assert all(np.all(seconds > 0) for seconds in times.seconds.values())
    # Weights, at least; SE adds an eighth of a percent of 14 million.
    assert times.memory["eager"] > times.memory["stock"] > 4 * 14e6
    assert torch.is_grad_enabled()
