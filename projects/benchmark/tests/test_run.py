from itertools import count

import numpy as np
import pytest
import torch

from .. import run as module
from ..rounds import rounds_in_turn
from ..run import WARM_UP, run_benchmark
from ..timed_models import MODELS


class Slow:
    """Models that take known times on a fake clock; a pass takes as many times longer as the image has 64 pixels."""

    def __init__(self) -> None:
        self.now = 0.0
        self.readings = count()
        self.interrupted_at = None
        self.broken = ""

    def prepare(self, model, case, compile_mode):
        if self.broken and model is MODELS[self.broken]:
            raise NotImplementedError('"conv" not implemented\nfor Half')
        seconds = {"plain": 1.0, "legacy_seresnet": 3.0, "se": 2.0}[model.backbone] * (0.5 if model.fused else 1)

        def run() -> None:
            self.now += seconds * case.size / 64

        return run, int(100 * seconds)

    def clock(self) -> float:
        if next(self.readings) == self.interrupted_at:
            raise KeyboardInterrupt
        return self.now


@pytest.fixture
def slow(monkeypatch) -> Slow:
    slow = Slow()
    # Both take long, and nothing is compiled or freed here.
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(module.gc, "collect", lambda: None)
    monkeypatch.setattr(module, "prepare", slow.prepare)
    monkeypatch.setattr(
        module, "rounds_in_turn", lambda runs, rounds, seed: rounds_in_turn(runs, rounds, clock=slow.clock, seed=seed)
    )
    return slow


def test_ratios_of_known_times(make_case, slow) -> None:
    models = ["stock", "stock-fused", "timm-legacy", "eager", "fused"]
    cases = [make_case(size=size, mode=mode) for mode in ("inference", "train") for size in (64, 128)]
    result = run_benchmark(cases, models, rounds=6)
    rows = result["rows"]
    ratios = {"stock": 1, "stock-fused": 0.5, "timm-legacy": 3, "eager": 2, "fused": 1}
    # Fused models are not trained.
    expected = [("inference", size, name, ratio) for size in (64, 128) for name, ratio in ratios.items()]
    expected += [
        ("train", size, name, ratio) for size in (64, 128) for name, ratio in ratios.items() if "f" not in name
    ]
    assert [(row["mode"], row["size"], row["arm"], row["ratio"]) for row in rows] == expected
    # Over stock's time in the first case of the mode.
    assert [row["cost"] for row in rows] == [ratio * size / 64 for _, size, _, ratio in expected]
    over_plain = {row["arm"]: row["over_plain"] for row in rows}
    assert over_plain == {"stock": None, "stock-fused": None, "timm-legacy": None, "eager": 2, "fused": 2}
    eager = rows[3]
    assert (eager["low"], eager["high"], eager["over_plain_low"], eager["over_plain_high"]) == (2, 2, 2, 2)
    assert (eager["rounds"], eager["spread"], eager["memory_ratio"], eager["median_ms"]) == (6, 0, 2, None)
    assert (result["skipped"], result["interrupted"]) == ([], False)
    assert result["machine"]["device"]
    assert result["machine"]["threads"] >= 1


def test_rounds_before_ctrl_c_are_kept_and_the_remaining_cases_skipped(make_case, slow) -> None:
    slow.interrupted_at = 2 * 2 * 9 + 2 * 2 * 3 + 1
    result = run_benchmark([make_case(size=size) for size in (64, 128, 192)], ["eager"], rounds=9)
    assert result["interrupted"]
    assert [(row["arm"], row["size"], row["rounds"], row["cost"]) for row in result["rows"]] == [
        *(("stock", 64, 9, 1), ("eager", 64, 9, 2), ("stock", 128, 3, 2), ("eager", 128, 3, 4))
    ]


def test_a_model_that_fails_is_skipped_with_its_reason(make_case, slow) -> None:
    slow.broken, case = "fused", make_case()
    result = run_benchmark([case], ["fused", "eager"], rounds=6)
    assert result["skipped"] == [f'fused in {case}: NotImplementedError: "conv" not implemented for Half']
    assert [row["arm"] for row in result["rows"]] == ["stock", "eager"]
    slow.broken = "stock"
    result = run_benchmark([case], ["fused", "eager"], rounds=6)
    assert (len(result["skipped"]), result["rows"]) == (1, [])


@pytest.mark.slow
def test_real_models_and_the_bound(make_case, monkeypatch) -> None:
    passes, memory = [], {}
    prepare = module.prepare

    def counted(model, case, compile_mode):
        workload, memory[model.backbone] = prepare(model, case, compile_mode)
        return lambda: passes.append(workload()), memory[model.backbone]

    monkeypatch.setattr(module, "prepare", counted)
    rows = run_benchmark([make_case()], ["eager", "bound"], rounds=2)["rows"]
    assert [row["arm"] for row in rows] == ["stock", "eager", "bound"]
    assert all(row["ratio"] > 0 for row in rows)
    assert (len(passes), WARM_UP) == (4, 3)
    # At least the weights: 11 million parameters, and a few more with SE.
    assert memory["se"] > memory["plain"] > 4 * 11e6
    assert torch.is_grad_enabled()
    assert np.isclose(rows[1]["memory_ratio"], memory["se"] / memory["plain"])
    assert rows[2]["memory_ratio"] is None
