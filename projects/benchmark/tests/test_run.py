import numpy as np
import pytest

from .. import run as module
from ..run import describe_machine, run_benchmark
from ..times import Times


@pytest.fixture
def measured(monkeypatch):
    """A pass of stock takes as many seconds as the size in pixels; 192 px are interrupted."""

    def measure(case, models, **options) -> Times:
        times = Times(case, memory=dict.fromkeys(models, 10), interrupted=case.size == 192)
        times.seconds = {name: np.full(6, case.size * (1.0 + (name == "eager"))) for name in models}
        times.skipped = {"fused": "reason"} if case.mode == "train" else {}
        return times

    monkeypatch.setattr(module, "measure_case", measure)


def test_all_cases_are_measured(make_case, measured) -> None:
    cases = [make_case(size=size, mode=mode) for mode in ("inference", "train") for size in (64, 128)]
    result = run_benchmark(cases, ["eager"], rounds=6)
    found = [(row.case.mode, row.case.size, row.model, row.ratio.value, row.cost) for row in result.rows]
    assert found == [
        (mode, size, model, ratio, ratio * size / 64)
        for mode in ("inference", "train")
        for size in (64, 128)
        for model, ratio in (("stock", 1.0), ("eager", 2.0))
    ]
    assert not result.interrupted
    assert result.skipped == [f"fused in {case}: reason" for case in cases[2:]]


def test_ctrl_c_skips_the_remaining_cases(make_case, measured) -> None:
    result = run_benchmark([make_case(size=size) for size in (64, 192, 256)], ["eager"], rounds=6)
    assert result.interrupted
    assert [row.case.size for row in result.rows] == [64, 64, 192, 192]


def test_the_machine_is_described() -> None:
    machine = describe_machine("cpu")
    assert machine["device"]
    assert machine["threads"] >= 1
