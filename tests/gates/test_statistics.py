import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json

from se_detection.gates.recorder import GateValues, se_gates
from se_detection.gates.statistics import FIELDS, BlockStatistics, load_statistics, save_statistics

CHANNELS, CLASSES, IMAGES = 7, 5, 60


@pytest.fixture
def gates():
    """Gates that depend on the classes in an image; one class never occurs, and two only together."""
    rng = np.random.default_rng(0)
    present = rng.random((IMAGES, CLASSES)) < (0.3, 0.5, 0.9, 0, 0)
    present[:, 4] = present[:, 1]
    values = rng.normal(0.5, 0.05, (IMAGES, CHANNELS)) + present @ rng.normal(0, 0.06, (CLASSES, CHANNELS))
    return present, values


def collect(present, values) -> BlockStatistics:
    block = BlockStatistics(values.shape[1], present.shape[1])
    add(block, present, values)
    return block


def add(block, present, values) -> None:
    for row, classes in zip(values, present, strict=True):
        near = (row < 0.45).astype(float), (row > 0.6).astype(float)
        block.add(GateValues(row, *near), np.flatnonzero(classes).tolist())


def test_statistics_match_those_of_all_gates_at_once(gates) -> None:
    present, values = gates
    block = collect(present, values)
    assert block.images.tolist() == [*present.sum(axis=0), IMAGES]
    assert block.images[3] == 0
    for index in (0, 1, 2, 4):
        of_class = values[present[:, index]]
        np.testing.assert_allclose(block.mean[index], of_class.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(block.std[index], of_class.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(block.mean[-1], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(block.std[-1], values.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(block.low, (values < 0.45).mean(axis=0))
    np.testing.assert_allclose(block.high, (values > 0.6).mean(axis=0))
    assert block.saturated == pytest.approx(((values < 0.45) | (values > 0.6)).mean())
    spread = (values.var(axis=0).sum() / (values.mean(axis=0) ** 2).sum()) ** 0.5
    assert block.relative_spread == pytest.approx(spread, rel=1e-12)


def test_class_share_is_adjusted_r_squared(gates) -> None:
    """Compares with numpy's least squares; also for gates far from zero, where sums of squares lose digits."""
    present, values = gates
    design = np.column_stack([np.ones(IMAGES), present])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    unexplained = ((values - fitted) ** 2).sum() / (IMAGES - np.linalg.matrix_rank(design))
    expected = 1 - unexplained / (((values - values.mean(axis=0)) ** 2).sum() / (IMAGES - 1))
    assert 0.2 < expected < 0.9
    assert collect(present, values).class_share == pytest.approx(expected, rel=1e-9)
    assert collect(present, values + 1e4).class_share == pytest.approx(expected, rel=1e-6)


def test_class_share_is_undefined_without_information() -> None:
    rng = np.random.default_rng(2)
    values = rng.random((20, 3))
    everywhere = np.ones((20, 1), dtype=bool)
    assert collect(everywhere, values).class_share is None
    some = rng.random((20, 4)) < 0.5
    assert collect(some, np.full((20, 3), 0.5)).class_share is None
    assert collect(some[:3], values[:3]).class_share is None
    assert BlockStatistics(3, 4).class_share is None


def test_statistics_resume_from_a_file(gates, tmp_path) -> None:
    present, values = gates
    save_statistics({"SE_2_1": collect(present[:23], values[:23])}, list("abcde"), 23, tmp_path / "some.npz")
    blocks, seen = load_statistics(tmp_path / "some.npz")
    assert seen == 23
    add(blocks["SE_2_1"], present[seen:], values[seen:])
    whole = collect(present, values)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(blocks["SE_2_1"], field), getattr(whole, field), rtol=1e-12)


def test_gates_match_those_of_detectron2s_mapper_and_model(explained, toy) -> None:
    """Compares with all gates kept in memory, in float64, for images read by detectron2's mapper."""
    run = explained.run
    images = load_coco_json(str(toy / "annotations" / "val.json"), str(toy / "val"), "unregistered")
    mapper = DatasetMapper(run.cfg, is_train=False)
    stored = {name: [] for name in explained.gates}
    hooks = [
        gate.activation.register_forward_hook(
            lambda *args, name=name: stored[name].append(args[2][0, :, 0, 0].double())
        )
        for name, gate in se_gates(run.model).items()
    ]
    with torch.no_grad():
        for image in images:
            run.model([mapper(image)])
    for hook in hooks:
        hook.remove()
    classes = [{annotation["category_id"] for annotation in image["annotations"]} for image in images]
    assert classes[-1] == set()
    assert list(explained.statistics) == ["SE_3_1", "SE_3_2", "SE_5_1", "SE_5_2"]
    for name, block in explained.statistics.items():
        values = torch.stack(stored[name]).numpy()
        for index in range(4):
            of_class = values[[index in present for present in classes]]
            assert len(of_class) == block.images[index] > 0
            np.testing.assert_allclose(block.mean[index], of_class.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(block.std[index], of_class.std(axis=0), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(block.mean[-1], values.mean(axis=0), rtol=1e-12)
        assert (block.relative_spread == 0) == (name == "SE_3_1")
