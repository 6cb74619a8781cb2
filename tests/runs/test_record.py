import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from torch import nn

from se_detection import create_backbone
from se_detection.runs.record import read_record, record_evaluation, recorded_commands, write_run_record

from ..helpers import raises


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def test_a_record_has_model_and_data(cfg, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("val.json").write_text("{}")
    register_coco_instances("record_val", {}, "val.json", "gone")
    MetadataCatalog.get("record_val").thing_classes = ["cup"]
    cfg.DATASETS.TEST = ("record_val",)
    model = Detector(create_backbone("se_resnet18"))
    write_run_record(cfg, model, (100, 130), config_file="a.yaml", allow_partial_backbone=True)
    record = read_record(tmp_path)
    assert record["data"]["record_val"] == {"json": str(tmp_path / "val.json"), "images": "gone"}
    assert (record["classes"], record["config_file"], record["allow_partial_backbone"]) == (["cup"], "a.yaml", True)
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert record["backbone_gflops"] > 0

    Path("other.json").write_text("{}")
    register_coco_instances("record_other", {}, "other.json", "there")
    cfg.DATASETS.TEST = ("record_other",)
    write_run_record(cfg, model, (100, 130), resumed_at=7)
    resumed = read_record(tmp_path)
    assert [entry["iteration"] for entry in resumed.pop("resumed")] == [7]
    assert resumed["data"].pop("record_other") == {"json": str(tmp_path / "other.json"), "images": "there"}
    assert resumed == record


def test_the_commands_of_a_run_are_in_order(cfg, tmp_path, monkeypatch) -> None:
    def run(*words: str, at: int | None = None) -> None:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
        write_run_record(cfg, Detector(nn.Linear(2, 1)), (100, 130), resumed_at=at)

    run("SOLVER.MAX_ITER", "200")
    record_evaluation(tmp_path)
    first = ("started", "train_net.py SOLVER.MAX_ITER 200")
    assert recorded_commands(read_record(tmp_path)) == [first]
    for iteration in (30, 40):
        run("--resume", "OUTPUT_DIR", "a b", at=iteration)
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--eval-only"])
    record_evaluation(tmp_path)
    second = ("resumed at iteration 30, resumed at iteration 40", "train_net.py --resume OUTPUT_DIR 'a b'")
    assert recorded_commands(read_record(tmp_path)) == [first, second, ("evaluated", "train_net.py --eval-only")]
    # The training evaluates again at its end.
    run("--resume", "SOLVER.MAX_ITER", "75", at=60)
    third = ("resumed at iteration 60", "train_net.py --resume SOLVER.MAX_ITER 75")
    assert recorded_commands(read_record(tmp_path)) == [first, second, third]
    run("--overwrite")
    assert recorded_commands(read_record(tmp_path)) == [("started", "train_net.py --overwrite")]
    assert recorded_commands({}) == []


def test_a_model_without_detectron2s_backbone_has_no_gflops(cfg, tmp_path) -> None:
    write_run_record(cfg, Detector(nn.Linear(2, 1)), (100, 130))
    assert read_record(tmp_path)["parameters"] == 3
    assert "backbone_gflops" not in read_record(tmp_path)


def test_a_bad_record_is_refused(tmp_path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with raises("run.bad_record", tmp_path / "run.json"):
        read_record(tmp_path)
