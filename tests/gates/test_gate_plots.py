from dataclasses import replace

import numpy as np
import pytest

from se_detection.gates import gate_plots as plots
from se_detection.gates.recorder import GateValues
from se_detection.gates.statistics import BlockStatistics


def test_shown_blocks_are_those_of_the_paper() -> None:
    names = [
        f"SE_{stage}_{block}" for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3)) for block in range(1, count + 1)
    ]
    assert plots.shown_blocks(names) == ["SE_2_3", "SE_3_4", "SE_4_6", "SE_5_1", "SE_5_2", "SE_5_3"]
    assert plots.shown_blocks(["SE_3_1"]) == ["SE_3_1"]


def test_the_overview_has_the_statistics_and_the_changes_of_ap(explained) -> None:
    panels = {panel.get_title(loc="left").split()[0]: panel for panel in plots.block_overview(explained).axes}
    assert list(panels) == ["variance", "spread", "saturated", "AP"]
    bars = {name: [bar.get_height() for bar in panel.patches] for name, panel in panels.items()}
    blocks, rows = list(explained.statistics.values()), explained.ablation.blocks.values()
    assert bars["variance"] == pytest.approx([100 * (block.class_share or 0) for block in blocks])
    assert bars["spread"] == pytest.approx([100 * block.relative_spread for block in blocks])
    low, high = np.reshape(bars["saturated"], (2, len(blocks)))
    assert low + high == pytest.approx([100 * block.saturated for block in blocks])
    points = [line for line in panels["AP"].lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] for line in points] == [row.difference["AP"].value for row in rows]
    intervals = [list(line.get_ydata()) for line in panels["AP"].lines[1:] if line.get_marker() != "o"]
    assert intervals == [[row.difference["AP"].low, row.difference["AP"].high] for row in rows]


@pytest.mark.parametrize("name", ["SE_3_2", "SE_5_1"])  # 128 channels as a line, 512 as points
def test_lines_are_the_statistics(explained, name) -> None:
    figure = plots.by_channel(explained, name)
    block = explained.statistics[name]
    upper, lower = ({line.get_label(): line.get_ydata() for line in axes.lines} for axes in figure.axes)
    np.testing.assert_array_equal(upper["all 12 images"], block.mean[-1])
    for index, label in enumerate(explained.data.classes):
        np.testing.assert_array_equal(upper[f"{label} ({block.images[index]})"], block.mean[index])
    differences = [values for values in lower.values() if len(values) == block.mean.shape[1]]
    expected = [block.mean[index] - block.mean[-1] for index in plots.most_frequent(block)]
    np.testing.assert_array_equal(differences, expected)


@pytest.mark.parametrize("classes", [1, 80])
def test_one_class_and_eighty(explained, classes) -> None:
    rng = np.random.default_rng(0)
    block = BlockStatistics(512, classes)
    for _ in range(200):
        values = rng.random(512)
        block.add(GateValues(values, values < 0.05, values > 0.95), np.flatnonzero(rng.random(classes) < 0.1).tolist())
    data = replace(explained.data, classes=tuple(f"class ${number}_x$" for number in range(classes)))
    analysis = replace(explained, data=data, statistics={"SE_5_1": block})
    figure = plots.by_channel(analysis, "SE_5_1")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(texts) == 2 + min(classes, 4)
    counts = sorted(block.images[:-1].tolist(), reverse=True)[:4]
    assert [int(text.rsplit("(")[1].rstrip(")")) for text in texts[1:-1]] == counts
    title = figure.axes[0].get_title(loc="left")
    assert ("the 4 most frequent of 80 classes" in title) == (classes == 80)


def test_panels_without_values_are_omitted(explained) -> None:
    constant, varying = BlockStatistics(3, 1), BlockStatistics(3, 1)
    for value in (0.4, 0.6):
        constant.add(GateValues(np.full(3, 0.5), *np.zeros((2, 3))), [0])
        varying.add(GateValues(np.full(3, value), *np.zeros((2, 3))), [0])
    analysis = replace(explained, ablation=None, statistics={"SE_5_1": varying})
    (panel,) = plots.block_overview(analysis).axes
    assert panel.get_title(loc="left").startswith("spread")
    assert plots.block_overview(replace(analysis, statistics={"SE_5_1": constant})) is None


def test_classes_without_images_are_not_plotted() -> None:
    block = BlockStatistics(3, 4)
    block.add(GateValues(*np.zeros((3, 3))), [2])
    block.add(GateValues(*np.zeros((3, 3))), [0, 2])
    assert plots.most_frequent(block) == [2, 0]
