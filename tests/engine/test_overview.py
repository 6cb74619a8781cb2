"""The lines before and after a run."""

import json
import os
from pathlib import Path

import pytest
from torch import nn

from se_detection.engine.overview import describe_run, next_command, summary
from se_detection.engine.trainer import Trainer
from se_detection.model_zoo import get_config
from se_detection.pretrain.pretrainer import Pretrainer

from ..helpers import raises
from .conftest import CONFIG


@pytest.fixture
def cfg(tmp_path):
    cfg = get_config(CONFIG)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "se"), "SOLVER.MAX_ITER", 20])
    return cfg


def write_run(folder: Path, annotations: Path, backbone: str = "build_se_resnet_fpn_backbone", *, at: int = 0) -> Path:
    (folder / "inference").mkdir(parents=True)
    results = folder / "inference" / "results.json"
    results.write_text(json.dumps({"annotations": str(annotations), "categories": [], "image_root": "/photos of cats"}))
    os.utime(results, (at, at))
    (folder / "run.json").write_text(json.dumps({"backbone": backbone}))
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder


def test_before_a_run_few_lines_say_what_it_is(cfg, monkeypatch) -> None:
    monkeypatch.setattr("se_detection.engine.overview.DatasetCatalog.get", lambda name: [{}] * 1234)
    cfg.merge_from_list(["SOLVER.STEPS", (12, 16, 40), "SOLVER.BASE_LR", 0.02, "TEST.EVAL_PERIOD", 5])
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.IMS_PER_BATCH", 8])
    model = nn.Linear(999, 1000)
    lines = describe_run(
        cfg, model, weights="random initialization", log=Path("a/log.txt"), train_loader=[None], start=7
    )
    named = dict(line.split(maxsplit=1) for line in lines[1:])
    assert len(lines) <= 10
    assert lines[0].startswith("se_detection 0.1.0, torch ")
    assert named["device"].startswith("cpu, ")
    assert named["test"] == "se_toy_val: 1,234 images"
    assert named["classes"] == "4: circle, square, triangle, cross"
    assert named["model"] == "Linear, se_resnet_fpn 18, 1.0 M parameters"
    assert named["log"] == "a/log.txt has all details"
    assert named["weights"] == "random initialization"
    assert named["schedule"].startswith("20 steps of 8 images, from step 8; learning rate 0.02, times 0.1 at 12, 16;")
    assert named["schedule"].endswith("evaluated every 5 steps and at the end")
    model.weight.requires_grad_(False)
    lines = describe_run(cfg, model, weights="a.pth", log=Path("a/log.txt"))
    assert not any(line.startswith("schedule") for line in lines)
    assert any(line.endswith("1.0 M parameters (1.0 M frozen)") for line in lines)


def test_after_a_run_its_metrics_and_the_next_command(cfg, tmp_path) -> None:
    run = write_run(tmp_path / "se", tmp_path)
    metrics = [{"iteration": 4, "bbox/AP": 41.0}, {"iteration": 9, "bbox/AP": 44.0}, {"iteration": 14, "bbox/AP": 44.0}]
    (run / "metrics.json").write_text("".join(json.dumps({**line, "lr": 1}) + "\n" for line in metrics))
    (run / "model_best.pth").touch()
    lines = summary(cfg, {"bbox": {"AP": 43.0, "AP50": 70.25}}, seconds=3671, command="se-det zoo", trained=True)
    assert [line.split(maxsplit=1) for line in lines] == [
        [],
        ["result", "AP 43.0, AP@0.5 70.2"],
        ["best", "AP 44.0 at step 10 (model_best.pth)"],
        ["time", "1:01:11"],
        ["folder", str(run)],
        ["next", "se-det zoo"],
    ]


def test_the_next_command_is_a_comparison_on_the_same_data_or_a_prediction(cfg, tmp_path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    run = write_run(tmp_path / "se", tmp_path / "a.json")
    assert next_command(run) == f"se-det predict --run {run} '/photos of cats'"
    write_run(tmp_path / "other data", tmp_path / "b.json", at=9)
    unfinished = write_run(tmp_path / "unfinished", tmp_path / "a.json", at=8)
    (unfinished / "last_checkpoint").write_text("model_0000004.pth")
    assert next_command(run).startswith("se-det predict")
    write_run(tmp_path / "older", tmp_path / "a.json", at=1)
    plain = write_run(tmp_path / "plain", tmp_path / "a.json", "build_resnet_fpn_backbone", at=2)
    assert next_command(run) == f"se-det compare --baseline {plain} --candidate {run}"
    # The plain one is the baseline.
    (tmp_path / "older").rename(tmp_path / "older_")
    assert next_command(plain).startswith(f"se-det compare --baseline {plain} --candidate {tmp_path}/")
    # SE in the network of another builder.
    gated = write_run(tmp_path / "gated", tmp_path / "b.json", "build_timm_fpn_backbone", at=10)
    (gated / "run.json").write_text(json.dumps({"backbone": "build_timm_fpn_backbone", "added_se": ["in the network"]}))
    write_run(tmp_path / "not gated", tmp_path / "b.json", "build_timm_fpn_backbone", at=11)
    assert next_command(gated) == f"se-det compare --baseline '{tmp_path}/not gated' --candidate {gated}"
    assert next_command(tmp_path / "not gated").endswith(f"--candidate {gated}")
    with raises("run.not_evaluated", tmp_path / "nothing"):
        next_command(tmp_path / "nothing")
    cfg.OUTPUT_DIR = str(tmp_path / "nothing")
    assert Trainer.next_command(cfg, "a.yaml") == ""
    cfg.OUTPUT_DIR = "out"
    expected = "se-det train --config-file a.yaml MODEL.WEIGHTS out/backbone.pth"
    assert Pretrainer.next_command(cfg, "a.yaml") == expected
