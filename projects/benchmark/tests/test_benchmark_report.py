import json
from dataclasses import replace

import pytest

from ..benchmark_report import benchmark_json, benchmark_table
from ..ratio import Ratio
from ..rows import Row
from ..run import Benchmark


@pytest.fixture
def benchmark(make_case) -> Benchmark:
    case = make_case(size=512, depth=50)
    stock = Row(
        model="stock",
        case=case,
        rounds=21,
        ratio=Ratio(1.0, 1.0, 1.0),
        over_plain=None,
        spread=0.02,
        cost=1.0,
        memory_ratio=1.0,
        median_ms=None,
    )
    eager = replace(
        stock, model="eager", ratio=Ratio(1.0412, 1.02, 1.06), over_plain=Ratio(1.0412, None, None), memory_ratio=None
    )
    machine = {"device": "a CPU", "threads": 2, "torch": "2.11"}
    return Benchmark(machine, [stock, eager], ["fused in a case: no reason"], interrupted=True)


def test_a_table_has_the_results(benchmark) -> None:
    text = benchmark_table(benchmark)
    lines = text.splitlines()
    assert lines[0] == "a CPU, 2 CPU threads, PyTorch 2.11"
    assert "R50, backbone+fpn, inference, float32, 512 px, batch 1: 21 rounds" in lines
    assert next(line for line in lines if line.startswith("eager")).split() == [
        *("eager", "1.041", "1.020", "to", "1.060", "1.041", "2", "%")
    ]
    assert "fused in a case: no reason" in text
    assert text.endswith("Interrupted: these are the results so far.")
    assert max(map(len, lines)) <= 120


def test_milliseconds_are_shown_on_a_gpu_only(benchmark) -> None:
    assert " ms" not in benchmark_table(benchmark)
    case = benchmark.rows[0].case
    object.__setattr__(case, "device", "cuda")  # without the check that a GPU exists
    benchmark.rows = [replace(row, median_ms=12.345) for row in benchmark.rows]
    assert "12.35" in benchmark_table(benchmark) or "12.34" in benchmark_table(benchmark)


def test_json_has_the_rows(benchmark) -> None:
    content = json.loads(json.dumps(benchmark_json(benchmark, "a command"), allow_nan=False))
    assert content["rows"][1] == {
        "arm": "eager",
        "part": "backbone+fpn",
        "mode": "inference",
        "device": "cpu",
        "dtype": "float32",
        "size": 512,
        "batch": 1,
        "depth": 50,
        "rounds": 21,
        "ratio": 1.0412,
        "low": 1.02,
        "high": 1.06,
        "over_plain": 1.0412,
        "over_plain_low": None,
        "over_plain_high": None,
        "spread": 0.02,
        "cost": 1.0,
        "memory_ratio": None,
        "median_ms": None,
    }
    assert content["command"] == "a command"
    assert content["machine"]["device"] == "a CPU"
    assert content["interrupted"] is True
