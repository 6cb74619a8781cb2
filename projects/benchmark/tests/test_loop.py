import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from PIL import Image

from se_detection import model_zoo
from se_detection.data.toy import make_toy_dataset

from ..loader_memory import loader_memory
from ..loop import evaluation_runs, loader_runs, measure_loop, random_boxes, training_step
from ..rounds import NOISY


def test_ratios_are_to_the_first_run_without_the_warm_up_round() -> None:
    now, calls = 0.0, Counter()

    def busy(name: str, seconds: float):
        def run() -> None:
            nonlocal now
            now += seconds if calls[name] else 1000 * seconds**2
            calls[name] += 1

        return run

    runs = {"reference": busy("reference", 2.0), "slower": busy("slower", 3.0)}
    rows = measure_loop(runs, rounds=7, clock=lambda: now)
    assert [(row["arm"], row["rounds"]) for row in rows] == [("reference", 7), ("slower", 7)]
    assert [row["ratio"]["value"] for row in rows] == pytest.approx([1.0, 1.5])
    assert calls == {"reference": 8, "slower": 8}


@pytest.fixture
def cfg(tmp_path):
    json_file = make_toy_dataset(tmp_path, split="train", count=6)
    register_coco_instances("benchmark_toy", {}, str(json_file), str(tmp_path / "train"))
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.DATASETS.TRAIN = ("benchmark_toy",)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96)
    cfg.INPUT.RANDOM_FLIP = "none"
    yield cfg
    DatasetCatalog.remove("benchmark_toy")
    MetadataCatalog.remove("benchmark_toy")


def test_both_loaders_load_the_same_images(cfg, tmp_path) -> None:
    runs = loader_runs(cfg)
    assert list(runs) == ["detectron2", "ours"]
    names = []
    for _ in range(4):
        theirs, ours = (load() for load in runs.values())
        assert [item["file_name"] for item in ours] == [item["file_name"] for item in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine["image"], other["image"])
            assert torch.equal(mine["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
            names.append(mine["file_name"])
        assert min(mine["image"].shape[1:]) == 96
    files = sorted(str(path) for path in (tmp_path / "train").iterdir())
    assert names == [*files, *files[:2]]
    pixels = np.asarray(Image.open(files[1]).resize(mine["image"].shape[:0:-1], Image.Resampling.BILINEAR))
    assert torch.equal(mine["image"], torch.tensor(pixels[..., ::-1].copy()).permute(2, 0, 1))
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64, 96)


def test_the_training_step_equals_detectron2s(cfg) -> None:
    batch = loader_runs(cfg)["ours"]()
    step = training_step(batch, "cpu")
    detector = copy.deepcopy(step.model)
    trainer = SimpleTrainer(detector, [batch], torch.optim.SGD(detector.parameters(), lr=0.0))
    gradients = {}
    for model in (step.model, detector):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter, name=name: gradients.setdefault(name, []).append(parameter.grad.clone())
                )
    torch.manual_seed(0)
    step()
    torch.manual_seed(0)
    trainer.iter = 0
    with EventStorage():
        trainer.run_step()
    assert len(gradients) > 100
    for ours, theirs in gradients.values():
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_all_evaluations_return_the_same_ap() -> None:
    """pycocotools' alone comes from the file that ours has written."""
    before = DatasetCatalog.list()
    with evaluation_runs(12) as runs:
        assert list(runs) == ["pycocotools", "detectron2", "ours"]
        theirs, *ours = (evaluate() for evaluate in runs.values())
        assert ours == pytest.approx([theirs] * 2, abs=1e-4)
        assert 5 < theirs < 60
    assert DatasetCatalog.list() == before


def test_random_boxes_are_as_many_as_in_coco() -> None:
    content, outputs = random_boxes(300)
    assert {len(output) for output in outputs} == {100}
    assert len(content["annotations"]) / 300 == pytest.approx(36781 / 5000, rel=0.1)  # of val2017
    assert len({item["category_id"] for item in content["annotations"]}) == 80
    for item in content["annotations"]:
        x, y, width, height = item["bbox"]
        assert min(x, y) >= 0
        assert x + width <= 640
        assert y + height <= 480


@pytest.mark.slow
def test_workers_share_a_packed_data_set_but_copy_a_list_of_objects() -> None:
    """Reading an object changes its reference count, which writes to its memory page."""
    ours, objects = loader_memory(3000, [2])
    assert (ours["arm"], objects["arm"]) == ("ours", "Python objects")
    assert ours["data_set"] > 1.5
    assert objects["grown"] > 2 * ours["grown"]
    assert objects["grown"] > 2 * ours["data_set"]


@pytest.mark.slow
def test_evaluation_command(run_script, tmp_path, capsys) -> None:
    written = tmp_path / "evaluation.json"
    run_script("benchmark_loop.py", "evaluation", "--images", 4, "--rounds", 6, "--json", written)
    rows = json.loads(written.read_text())["rows"]
    assert [row["arm"] for row in rows] == ["pycocotools", "detectron2", "ours"]
    assert rows[0]["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    printed = capsys.readouterr().out
    for row in rows[1:]:
        assert f"{row['ratio']['value']:.3f}" in printed or NOISY in printed


@pytest.mark.slow
def test_loader_and_memory_commands(run_script, tmp_path, capsys) -> None:
    json_file = make_toy_dataset(tmp_path, split="train", count=4)
    data = ["--train-json", json_file, "--train-images", tmp_path / "train"]
    run_script("benchmark_loop.py", "loader", *data, "--size", 64, "--rounds", 2)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["detectron2", "ours", "training"]
    run_script("benchmark_loop.py", "memory", "--images", 500, "--workers", 1)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["ours", "Python"]


def test_images_without_annotations_are_reported(run_script, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script("benchmark_loop.py", "loader", "--train-images", "x")
    assert ended.value.code == 2
    assert "[data.json_without_images]" in capsys.readouterr().err
