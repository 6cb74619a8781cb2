import json

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection.comparison.compare import compare
from se_detection.evaluation.coco_evaluator import COCODetectionEvaluator
from se_detection.gates.ablation import ALL, TOGETHER, UNCHANGED, summarize
from se_detection.runs.evaluation_data import open_evaluation_data
from se_detection.runs.trained_run import load_trained_run, read_run_config

from .conftest import CONSTANT


@pytest.fixture
def evaluate(explained, tmp_path):
    """A function that evaluates a detector with detectron2: returns its metrics and the file of its detections."""
    # The analysis may come from tests of another file, whose data sets are no longer registered.
    open_evaluation_data(explained.run, None, None)

    def evaluate(model, name: str):
        loader = build_detection_test_loader(explained.run.cfg, "images")
        evaluator = COCODetectionEvaluator("images", output_dir=str(tmp_path / name))
        return inference_on_dataset(model, loader, evaluator)["bbox"], tmp_path / name / "coco_instances_results.json"

    return evaluate


def with_gate_at(run, name: str, mean):
    """The run's detector, loaded again, with a block whose layers give the same gate for every image."""
    model = load_trained_run(run, read_run_config(run)).model
    stage, block = int(name[3]), int(name[5]) - 1
    se = getattr(model.backbone.bottom_up, f"res{stage}")[block].se
    se.fc2.weight.data.zero_()
    se.fc2.bias.data = torch.logit(torch.from_numpy(mean)).float()
    return model


@pytest.mark.slow
def test_ap_and_interval_match_detectron2s_evaluation(explained, evaluate) -> None:
    ablation = explained.ablation
    before, unchanged = evaluate(explained.run.model, "unchanged")
    assert before["AP"] > 0
    assert ablation.unchanged == pytest.approx({key: before[key] for key in ("AP", "AP50")}, rel=1e-9)
    name = "SE_5_2"
    row = ablation.blocks[name]
    after, held = evaluate(with_gate_at(explained.run.folder, name, explained.statistics[name].mean[-1]), name)
    assert after["AP"] != before["AP"]
    # The bias is a float32 logit, so the gate differs in the last digits.
    for key in ("AP", "AP50"):
        assert row.metrics[key] == pytest.approx(after[key], rel=1e-2)
        assert row.difference[key].value == pytest.approx(row.metrics[key] - before[key], rel=1e-9)
    expected = compare(unchanged, held, explained.data.annotations, n_bootstrap=200).difference["AP"]
    assert expected.low < expected.high
    assert [row.difference["AP"].low, row.difference["AP"].high] == pytest.approx(
        [expected.low, expected.high], rel=0.1
    )


@pytest.mark.slow
def test_ablating_a_constant_gate_changes_nothing(explained) -> None:
    rows = json.loads((explained.folder / "state.json").read_text())["rows"]
    assert list(rows) == [UNCHANGED, *explained.gates, ALL]
    for label, row in rows.items():
        assert (row["AP"] == rows[UNCHANGED]["AP"]) == (label in (UNCHANGED, CONSTANT)), label
        assert len(row["AP"]) == len(row["AP50"]) == 201
    row = explained.ablation.blocks[CONSTANT]
    assert row.difference["AP"].value == row.difference["AP"].low == row.difference["AP"].high == 0


def test_saved_parameters_and_time(explained) -> None:
    ablation = explained.ablation
    weights = torch.load(explained.run.weights, weights_only=True)["model"]
    sizes = {key: tensor.numel() for key, tensor in weights.items() if not key.startswith("pixel_")}
    for name, row in ablation.blocks.items():
        path = f"backbone.bottom_up.res{name[3]}.{int(name[5]) - 1}.se."
        se_size = sum(size for key, size in sizes.items() if key.startswith(path))
        assert row.parameters == se_size > 0
        assert row.parameter_share == pytest.approx(se_size / sum(sizes.values()))
        assert 0 < row.time_share < 0.5
    for field in ("parameters", "parameter_share", "time_share"):
        total = sum(getattr(row, field) for row in ablation.blocks.values())
        assert getattr(ablation.joint[ALL], field) == pytest.approx(total)


@pytest.mark.slow
def test_a_subset_of_the_images(some_explained, explained, tmp_path) -> None:
    analysis = some_explained
    ids = [image["image_id"] for image in analysis.data.images]
    all_ids = [image["image_id"] for image in explained.data.images]
    # Spread evenly over the set, from the first to the last.
    assert ids == [all_ids[index] for index in (0, 4, 7, 11)]
    annotations = COCO(str(explained.data.annotations))
    evaluator = COCODetectionEvaluator("images", output_dir=str(tmp_path / "all"))
    inference_on_dataset(analysis.run.model, build_detection_test_loader(analysis.run.cfg, "images"), evaluator)
    results = annotations.loadRes(str(tmp_path / "all" / "coco_instances_results.json"))
    reference = COCOeval(annotations, results, "bbox")
    reference.params.imgIds = ids
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert analysis.ablation.unchanged == pytest.approx(
        {"AP": 100 * reference.stats[0], "AP50": 100 * reference.stats[1]}
    )
    # Too few images for intervals: no block is dispensable.
    assert not any(row.dispensable for row in analysis.ablation.rows().values())


def test_a_block_is_dispensable_if_the_interval_of_the_loss_is_small(explained) -> None:
    samples = np.random.default_rng(0).normal(0, 1, 200)

    def row(blocks, loss, spread):
        """AP 40 minus a loss, which varies over bootstrap samples by a spread."""
        ap = [40 - loss, *(40 + samples - loss + spread * np.sign(np.arange(200) % 2 - 0.5))]
        return {"blocks": blocks, "AP": ap, "AP50": ap}

    names = list(explained.gates)
    losses = {names[0]: (0.0, 0.01), names[1]: (0.3, 0.01), names[2]: (0.3, 0.2), names[3]: (0.6, 0.01)}
    rows = {UNCHANGED: row([], 0, 0), **{name: row([name], *losses[name]) for name in names}}
    rows[TOGETHER] = row(names[:2], 0.4, 0.01)
    state = {"time": explained.ablation.time, "rows": rows}
    ablation = summarize(explained.run, explained.gates, state, explained.data.coco())
    assert [row.dispensable for row in ablation.blocks.values()] == [True, True, False, False]
    # Student's t with ten degrees of freedom (eleven images have objects): 2.228; variance with n - 1 over both.
    change = ablation.blocks[names[2]].difference["AP"]
    reach = 2.2281 * 0.2 * (200 / 199 * 11 / 10) ** 0.5
    assert (change.value, change.low, change.high) == pytest.approx((-0.3, -0.3 - reach, -0.3 + reach), rel=1e-3)
    assert list(ablation.rows()) == [*names, TOGETHER]
    assert ablation.joint[TOGETHER].blocks == tuple(names[:2])
    # Without AP, no block is dispensable.
    state["rows"] = {label: {**row, "AP": [0.0] * 201} for label, row in rows.items()}
    nothing = summarize(explained.run, explained.gates, state, explained.data.coco())
    assert not any(row.dispensable for row in nothing.blocks.values())
