import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from ..benchmark_plots import STYLES, _forests, _sweep, draw_benchmark
from ..benchmark_report import benchmark_table
from ..deployment_table import deployment_table
from ..rounds import NOISY, Ratio, paired_ratio
from ..run import rows_of

SECONDS = {"stock": 1.0, "eager": 1.05, "fused": 0.8, "bound": 0.4}


@pytest.fixture
def rows(make_case):
    def make(sizes, batches=(1,), models=tuple(SECONDS), **fields):
        return [
            row
            for batch in batches
            for size in sizes
            for row in rows_of(
                make_case(size=size, batch=batch, depth=50, **fields),
                {name: SECONDS[name] * batch * (size / 256) ** 2 * np.arange(1.0, 7) for name in models},
                {"stock": 100, "eager": 104},
                first=3.5,
            )
        ]

    return make


def result(rows, **changes):
    machine = {"device": "a CPU", "threads": 2, "torch": "2.11"}
    return {"machine": machine, "rows": rows, "skipped": [], "interrupted": False} | changes


def test_a_table_has_the_results(rows) -> None:
    changes = {"skipped": ["fused in a case: no reason"], "interrupted": True}
    text = benchmark_table(result(rows([512], models=("stock", "eager")), **changes))
    lines = text.splitlines()
    assert lines[0] == "a CPU, 2 CPU threads, PyTorch 2.11"
    assert "R50, backbone+fpn, inference, float32, 512 px, batch 1: 6 rounds" in lines
    assert next(line for line in lines if line.startswith("eager")).split() == [
        *("eager", "1.050", "1.050", "to", "1.050", "1.050", "1.050", "to", "1.050", "71", "%", "1.04")
    ]
    assert "fused in a case: no reason" in text
    assert text.endswith("Interrupted: these are the results so far.")
    assert max(map(len, lines)) <= 120


def test_milliseconds_are_shown_on_a_gpu_only(rows) -> None:
    assert " ms" not in benchmark_table(result(rows([512])))
    assert "3675.00" in benchmark_table(result(rows([256], device="cuda")))


def test_rows_can_be_written_as_json(rows, make_case) -> None:
    row = json.loads(json.dumps(rows([512])[1], allow_nan=False))
    assert row.items() >= {"arm": "eager", **asdict(make_case(size=512, depth=50))}.items()
    # Quartiles of 1 to 6 are 2.25, 3.5 and 4.75.
    assert row["spread"] == pytest.approx(2.5 / 3.5)
    assert (row["cost"], row["memory_ratio"]) == (pytest.approx(4 * 1.05), 1.04)


def test_every_model_has_its_own_style() -> None:
    assert len(set(STYLES.values())) == len(STYLES)


def test_one_size_is_plotted_as_ratios(rows) -> None:
    shown = [{**row, "low": 0.9 * row["ratio"], "high": 1.1 * row["ratio"]} for row in rows([256])]
    axes = _forests({"one": shown}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SECONDS)
    points = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert points == pytest.approx(list(SECONDS.values()))
    reach = [list(line.get_xdata()) for line in axes.lines[1:] if len(line.get_xdata()) == 2]
    assert reach == [pytest.approx([0.9 * ratio, 1.1 * ratio]) for ratio in SECONDS.values()]


@pytest.mark.parametrize(("over", "values", "growth"), [("size", [256, 512, 1024], 4), ("batch", [1, 2, 4], 2)])
def test_a_sweep_is_plotted_over_sizes_or_batches(rows, over, values, growth) -> None:
    measured = rows(values) if over == "size" else rows([256], values)
    without_fused = [row for row in measured if row["arm"] != "fused"]
    figure = _sweep({"train": without_fused, "inference": measured}, over)
    _, upper, _, lower = figure.axes
    for axes, factor in ((upper, 1), (lower, growth)):
        assert [list(line.get_xdata()) for line in axes.lines] == [values] * 4
        assert [list(line.get_ydata()) for line in axes.lines] == [
            [pytest.approx(value * factor**step) for step in range(3)] for value in SECONDS.values()
        ]
    # The legend has the models of all columns.
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(SECONDS)


@pytest.mark.slow
def test_the_files(rows, tmp_path) -> None:
    """A sweep has a column for each batch."""
    columns = {"size": rows([256, 512]), "sizes": rows([256, 512], [1, 2])}
    widths = {
        name: Image.open(draw_benchmark(shown, tmp_path / f"{name}.png")).size[0] for name, shown in columns.items()
    }
    assert widths["sizes"] > 1.4 * widths["size"]


def test_the_table_for_deployment_has_time_ap_size_and_memory(rows) -> None:
    random = rows([512], part="detector")
    ap = {"original": 46.8, "exported": 46.6, "difference": {"value": -0.2, "low": -0.45, "high": 0.05}}
    trained = [{**row, "ap": ap, "megabytes": 31.5} for row in random]
    text = benchmark_table(result(trained))
    assert "46.60, -0.20 (-0.45 to +0.05)" in text
    assert "process" in text
    lines = deployment_table(result(random), result(trained)).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")][1:-1] == [
        *("PyTorch, `fuse_for_inference`", "float32", "0.800 (0.800 to 0.800)", "0.800 (0.800 to 0.800)"),
        *("46.60, -0.20 (-0.45 to +0.05)", "", ""),
    ]


def test_ratios_have_no_interval_with_few_rounds() -> None:
    assert paired_ratio(np.ones(5), np.ones(5)).cells() == ["1.000", ""]


def test_a_wide_interval_is_too_noisy_to_tell(rows) -> None:
    assert Ratio(1.0, 0.15, 2.8).cells() == ["–", NOISY]
    assert Ratio(1.0, 0.9, 1.3).cells() == ["1.000", "0.900 to 1.300"]
    measured = rows([512], models=("stock", "eager"))
    assert NOISY not in benchmark_table(result(measured))
    noisy = [{**row, "low": 0.15, "high": 2.8} for row in measured]
    assert benchmark_table(result(noisy)).count(NOISY) == 2
