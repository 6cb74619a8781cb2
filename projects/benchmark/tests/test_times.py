import numpy as np
import pytest
import torch

from .. import times as module
from ..rows import rows_of
from ..timed_models import MODELS
from ..times import WARM_UP, measure_case


class Slow:
    """Models that take known times on a fake clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = {"plain": 1.0, "legacy_seresnet": 3.0, "se": 2.0}

    def prepare(self, model, case, compile_mode):
        seconds = self.takes[model.backbone] * (0.5 if model.fused else 1)

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


def measure(case, models, clock, **options):
    reported = []
    options = {"rounds": 6, "compile_mode": "default", "seed": 0, **options}
    times = measure_case(
        case, models, progress=lambda text, passes: reported.append((text, passes)), clock=clock, **options
    )
    return times, reported


def test_ratios_of_known_times(make_case, slow) -> None:
    times, reported = measure(make_case(), ["stock", "stock-fused", "timm-legacy", "eager", "fused"], slow.clock)
    rows = {row.model: row for row in rows_of(times, first=0.5)}
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
    assert sum(passes for _, passes in reported) == 5 * (WARM_UP + 6)


def test_rounds_before_ctrl_c_are_kept(make_case, slow) -> None:
    readings = iter(range(2 * 2 * 3 + 1))

    def clock() -> float:
        if next(readings, None) is None:
            raise KeyboardInterrupt
        return slow.now

    times, _ = measure(make_case(), ["stock", "eager"], clock, rounds=9)
    assert times.interrupted
    assert {name: list(seconds) for name, seconds in times.seconds.items()} == {"stock": [1.0] * 3, "eager": [2.0] * 3}


def test_a_model_that_fails_is_skipped_with_its_reason(make_case, slow, monkeypatch) -> None:
    def prepare(model, case, compile_mode):
        if model is broken:
            raise NotImplementedError('"conv" not implemented\nfor Half')
        return slow.prepare(model, case, compile_mode)

    monkeypatch.setattr(module, "_prepare", prepare)
    broken = MODELS["fused"]
    times, _ = measure(make_case(), ["stock", "fused", "eager"], slow.clock)
    assert times.skipped == {"fused": 'NotImplementedError: "conv" not implemented for Half'}
    assert [row.model for row in rows_of(times, 1.0)] == ["stock", "eager"]
    broken = MODELS["stock"]
    times, _ = measure(make_case(), ["stock", "fused", "eager"], slow.clock)
    assert times.skipped.keys() == {"stock"}
    assert times.seconds == {}


def test_real_models_and_the_bound(make_case) -> None:
    times, _ = measure(make_case(), ["stock", "eager", "bound"], None, rounds=2)
    assert {name: seconds.shape for name, seconds in times.seconds.items()} == dict.fromkeys(
        ("stock", "eager", "bound"), (2,)
    )
    assert all(np.all(seconds > 0) for seconds in times.seconds.values())
    # At least the weights: 14 million parameters, and a few more with SE.
    assert times.memory["eager"] > times.memory["stock"] > 4 * 14e6
    assert torch.is_grad_enabled()
