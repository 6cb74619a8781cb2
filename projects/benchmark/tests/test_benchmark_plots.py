import pytest
from PIL import Image

from ..benchmark_plots import STYLES, _forests, _sweep, draw_benchmark
from ..ratio import Ratio
from ..rows import Row
from ..run import Benchmark

MODELS = {"stock": 1.0, "eager": 1.05, "fused": 0.8, "bound": 0.4}


@pytest.fixture
def rows(make_case):
    def make(sizes, batches=(1,)):
        return [
            Row(
                model=model,
                case=make_case(size=size, batch=batch, depth=50),
                rounds=6,
                ratio=Ratio(ratio, 0.9 * ratio, 1.1 * ratio),
                over_plain=None,
                spread=0.1,
                cost=ratio * batch * size**2 / 256**2,
                memory_ratio=1.0,
                median_ms=None,
            )
            for batch in batches
            for size in sizes
            for model, ratio in MODELS.items()
        ]

    return make


def test_every_model_has_its_own_style() -> None:
    styles = [tuple(style.values()) for style in STYLES.values()]
    assert len(set(styles)) == len(styles)


def test_one_size_is_plotted_as_ratios(rows, tmp_path) -> None:
    axes = _forests({"one": rows([256])}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(MODELS)
    points = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert points == list(MODELS.values())
    reach = [list(line.get_xdata()) for line in axes.lines[1:] if len(line.get_xdata()) == 2]
    assert reach == [pytest.approx([0.9 * ratio, 1.1 * ratio]) for ratio in MODELS.values()]
    path = draw_benchmark(Benchmark({}, rows([256])), tmp_path / "one.png")
    assert Image.open(path).format == "PNG"


def test_a_sweep_is_plotted_over_sizes(rows, tmp_path) -> None:
    upper, lower = _sweep({"sweep": rows([256, 512, 1024])}, "size").axes
    for axes, first, growth in ((upper, list(MODELS.values()), 1), (lower, list(MODELS.values()), 4)):
        assert [list(line.get_xdata()) for line in axes.lines] == [[256, 512, 1024]] * 4
        assert [list(line.get_ydata()) for line in axes.lines] == [
            [pytest.approx(value * growth**step) for step in range(3)] for value in first
        ]
    path = draw_benchmark(Benchmark({}, rows([256, 512], [1, 2])), tmp_path / "sizes.png")
    # A column for each batch.
    assert (
        Image.open(path).size[0]
        > 1.4 * Image.open(draw_benchmark(Benchmark({}, rows([256, 512])), tmp_path / "size.png")).size[0]
    )


def test_the_legend_has_the_models_of_all_columns(rows) -> None:
    inference = rows([256, 512])
    figure = _sweep({"train": [row for row in inference if row.model != "fused"], "inference": inference}, "size")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(MODELS)


def test_a_sweep_of_one_size_is_plotted_over_batches(rows, tmp_path) -> None:
    upper, _ = _sweep({"sweep": rows([256], [1, 2, 4])}, "batch").axes
    assert list(upper.lines[0].get_xdata()) == [1, 2, 4]
    draw_benchmark(Benchmark({}, rows([256], [1, 2, 4])), tmp_path / "batches.png")
    assert (tmp_path / "batches.png").is_file()
