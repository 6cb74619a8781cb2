from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from se_detection.comparison import comparison_plots as plots
from se_detection.comparison.compare import compare
from se_detection.comparison.result import ComparedModel
from se_detection.visualization.inline_charts import chart_style

NAMES = ["differences", "per_class", "error_types", "precision_recall", "ap_by_iou", "ap_by_size", "calibration"]


@pytest.fixture(scope="module")
def comparison(make_annotations, detect):
    annotations = make_annotations()
    models = [detect(annotations, seed=seed, jitter=jitter) for seed, jitter in ((1, 0.2), (2, 0.02))]
    return compare(*models, annotations, n_bootstrap=100)


@pytest.mark.slow
def test_every_plot_shows_both_models(comparison, tmp_path) -> None:
    paths = plots.draw_plots(comparison, tmp_path / "plots")
    assert [path.stem for path in paths] == NAMES
    for path in paths[2:]:
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        for colour in plots.COLOURS:
            ours = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
            assert (np.abs(pixels.astype(int) - ours).max(axis=1) < 4).sum() > 200, (path, colour)


def lines(figure, panel=0):
    """The y values of the lines, by label."""
    return {line.get_label(): line.get_ydata() for line in figure.axes[panel].lines}


def test_curves_have_the_values_of_the_comparison(comparison) -> None:
    details = comparison.details
    for figure, curve in (
        (plots.plot_ap_by_iou(comparison), details.ap_by_iou),
        (plots.plot_ap_by_size(comparison), details.ap_by_size),
        (plots.plot_precision_recall(comparison), details.precision_recall["0.50"]),
    ):
        drawn = lines(figure)
        assert list(drawn["baseline"]) == curve.baseline
        assert list(drawn["candidate"]) == curve.candidate
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["baseline", "candidate"]
    assert plots.plot_precision_recall(comparison).axes[-1].get_xlabel() == "recall (%)"
    found = details.calibration["candidate"]
    drawn = lines(plots.plot_calibration(comparison))[f"candidate, ECE {found.ece:.3f}"]
    assert list(drawn) == [value for value in found.precision if value is not None]
    bars = plots.plot_error_types(comparison).axes[0].containers
    widths = [[bar.get_width() for bar in group] for group in bars if hasattr(group, "patches")]
    assert widths[1] == [details.error_types["candidate"][name].dap for name in plots.ERRORS]


def test_significant_points_are_filled_in_the_better_models_colour(comparison) -> None:
    axes = plots.plot_differences(comparison).axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(points) == len(names) == 12
    for name, point in zip(names, points, strict=True):
        item = comparison.difference[name]
        significant = item.low is not None and not item.low <= 0 <= item.high
        assert point.get_xdata() == [item.value]
        assert (point.get_fillstyle() == "full") == significant
        assert to_hex(point.get_color()).upper() == (plots.COLOURS[int(item.value > 0)] if significant else "#777777")
    assert any(point.get_fillstyle() == "full" for point in points)


def test_with_many_classes_the_largest_differences_are_shown(annotations) -> None:
    boxes = annotations["annotations"]
    many = {
        **annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(50)],
        "annotations": [
            {**boxes[number % len(boxes)], "id": number + 1, "category_id": number, "iscrowd": 0}
            for number in range(50)
        ],
    }
    results = [
        {**{key: item[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.5}
        for item in many["annotations"]
        if item["category_id"] < 25
    ]
    # The candidate finds 15 classes, the baseline another 10.
    found, others = results[:15], results[15:]
    axes = plots.plot_per_class(compare(others, found, many, n_bootstrap=100)).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == plots.CLASSES
    assert {f"class {number}" for number in range(25)} < set(names)
    values = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert values == sorted(values, reverse=True)
    assert "40 of 50 classes" in axes.get_xlabel()


def test_each_run_has_a_training_curve(comparison) -> None:
    runs = {
        "baseline": [{"loss": {9: 2.0, 19: 1.0}, "ap": {20: 5.0}}, {"loss": {9: 3.0, 19: 1.5}, "ap": {20: 6.0}}],
        "candidate": [{"loss": {9: 2.5, 19: 0.5}, "ap": {20: 7.0}}],
    }
    figure = plots.plot_training(comparison, runs)
    # AP of a single evaluation is not drawn.
    assert len(figure.axes) == 1
    drawn = [(list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in figure.axes[0].lines]
    assert drawn == [
        ([9, 19], [2.0, 1.0], plots.COLOURS[0]),
        ([9, 19], [3.0, 1.5], plots.COLOURS[0]),
        ([9, 19], [2.5, 0.5], plots.COLOURS[1]),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["baseline", "candidate"]

    runs["candidate"][0]["ap"][40] = 3.0
    upper, lower = plots.plot_training(comparison, runs).axes
    assert upper.get_ylabel() == "total loss"
    assert [list(line.get_ydata()) for line in lower.lines] == [[5.0], [6.0], [7.0, 3.0]]
    assert (
        plots.plot_training(comparison, {"baseline": [{"loss": {}, "ap": {}}], "candidate": [{"loss": {}, "ap": {}}]})
        is None
    )


def test_names_are_not_parsed_as_formulas(comparison, tmp_path) -> None:
    models = {"baseline": ComparedModel("$x_1$"), "candidate": ComparedModel("a" * 50)}
    with chart_style():
        figure = plots.plot_calibration(replace(comparison, models=models))
        figure.savefig(tmp_path / "calibration.svg")
    text = (tmp_path / "calibration.svg").read_text()
    assert "baseline: $x_1$, ECE" in text
    assert f"candidate: {'a' * 19}…, ECE" in text
    assert "mathdefault" not in text
