import json
import sysconfig
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .conftest import SMALL, read_metrics


def evaluate_with_pycocotools(annotations: Path, predictions: Path) -> COCOeval:
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_train_resume_and_evaluate_custom_data(run_tool, train_net, se_config, tiny, tiny_flags, tmp_path) -> None:
    run = tmp_path / "run"
    # Low scores are kept: a detector of two steps has no others.
    overrides = [*SMALL, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", run]
    common = ["--config-file", se_config, *tiny_flags]
    done = run_tool(train_net, *common, *overrides)
    assert done.returncode == 0, done.stderr

    # The files that detectron2's users expect.
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= {
        p.name for p in run.iterdir()
    }
    assert list(run.glob("events.out.tfevents.*"))
    cfg = get_cfg()
    cfg.merge_from_file(str(run / "config.yaml"))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    assert cfg.MODEL.DEVICE == ("cuda" if torch.cuda.is_available() else "cpu")

    # The results are those of pycocotools on the predictions.
    results = json.loads((run / "inference" / "results.json").read_text())
    assert results["categories"] == ["circle", "square", "triangle", "cross"]
    predictions = run / "inference" / "coco_instances_results.json"
    reference = evaluate_with_pycocotools(tiny / "annotations" / "val.json", predictions)
    for index, metric in enumerate(("AP", "AP50", "AP75", "APs", "APm")):
        assert results["bbox"][metric] == pytest.approx(100 * reference.stats[index], abs=1e-6)
    record = json.loads((run / "run.json").read_text())
    weights = torch.load(run / "model_final.pth", weights_only=True)["model"]
    buffers = {"pixel_mean", "pixel_std"}
    assert record["parameters"] == sum(tensor.numel() for key, tensor in weights.items() if key not in buffers)
    assert record["classes"] == results["categories"]

    # A second run into the same folder is refused, and leaves every byte alone.
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = run_tool(train_net, *common, *overrides)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith(f"error: OUTPUT_DIR: {run} holds a run already")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    # --resume continues where the run stopped.
    resumed = run_tool(train_net, "--resume", *common, *overrides, "SOLVER.MAX_ITER", "4")
    assert resumed.returncode == 0, resumed.stderr
    assert [line["iteration"] for line in read_metrics(run) if "total_loss" in line][-1] == 3
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 3

    # Evaluation alone finds the same AP, and leaves the training's config and log as they are.
    trained = json.loads((run / "inference" / "results.json").read_text())
    config = (run / "config.yaml").read_bytes()
    evaluated = run_tool(train_net, "--eval-only", "--resume", *common, *overrides)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((run / "inference" / "results.json").read_text()) == trained
    assert (run / "config.yaml").read_bytes() == config

    # The fused detector has the same detections.
    found = json.loads(predictions.read_text())
    fused = run_tool(train_net, "--eval-only", "--fuse", "--resume", *common, *overrides)
    assert fused.returncode == 0, fused.stderr
    for faster, plain in zip(json.loads(predictions.read_text()), found, strict=True):
        assert [faster["image_id"], faster["category_id"]] == [plain["image_id"], plain["category_id"]]
        assert [*faster["bbox"], faster["score"]] == pytest.approx([*plain["bbox"], plain["score"]], abs=1e-3)

    # --overwrite replaces the run, and nothing else that is in its folder.
    (run / "notes.txt").write_text("mine")
    replaced = run_tool(train_net, "--overwrite", *common, *overrides)
    assert replaced.returncode == 0, replaced.stderr
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 1
    assert [line["iteration"] for line in read_metrics(run) if "total_loss" in line] == [1]
    assert (run / "notes.txt").read_text() == "mine"

    # A checkpoint of four classes doesn't fit a config of three.
    elsewhere = ["DATASETS.TEST", "('se_toy_val',)", "OUTPUT_DIR", tmp_path / "other"]
    wrong = ["MODEL.WEIGHTS", run / "model_final.pth", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    three = run_tool(train_net, "--eval-only", "--config-file", se_config, *SMALL, *elsewhere, *wrong)
    assert three.returncode == 2
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 3 contradicts data set 'se_toy_val', which has 4 classes" in three.stderr


def test_the_toy_set_is_generated_on_first_use(run_tool, train_net, se_config, tmp_path) -> None:
    done = run_tool(train_net, "--config-file", se_config, *SMALL, "OUTPUT_DIR", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "inference" / "results.json").is_file()


def test_detectron2s_own_train_net(run_tool, se_config, tmp_path) -> None:
    """The wheel's unmodified script trains and evaluates our config, with only an environment variable."""
    script = Path(sysconfig.get_paths()["purelib"], "tools", "train_net.py")
    if not script.exists():
        pytest.skip(f"this detectron2 was installed without its tools ({script})")
    environment = {"DETECTRON2_ENV_MODULE": "se_detection.env", "DETECTRON2_DATASETS": str(tmp_path)}
    overrides = [*SMALL, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path / "run"]
    trained = run_tool(script, "--config-file", se_config, *overrides, **environment)
    assert trained.returncode == 0, trained.stderr
    weights = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert any(".se.fc1." in key for key in weights)
    overrides += ["MODEL.WEIGHTS", tmp_path / "run" / "model_final.pth"]
    evaluated = run_tool(script, "--eval-only", "--config-file", se_config, *overrides, **environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "copypaste: AP,AP50,AP75" in evaluated.stdout + evaluated.stderr


def test_other_classes_need_reset_predictor(run_tool, train_net, se_config, tiny, tiny_flags, tmp_path) -> None:
    """A detector of four classes, fine-tuned on two: with --reset-predictor only its last layers are new."""
    four = run_tool(train_net, "--config-file", se_config, *tiny_flags, *SMALL, "OUTPUT_DIR", tmp_path / "four")
    assert four.returncode == 0, four.stderr
    content = json.loads((tiny / "annotations" / "train.json").read_text())
    content["categories"] = content["categories"][:2]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] <= 2]
    two = tmp_path / "two.json"
    two.write_text(json.dumps(content))
    data = [f"--{split}-{kind}" for split in ("train", "val") for kind in ("json", "images")]
    flags = [part for pair in zip(data, [two, tiny / "train"] * 2, strict=True) for part in pair]
    overrides = [*SMALL, "MODEL.WEIGHTS", tmp_path / "four" / "model_final.pth", "OUTPUT_DIR", tmp_path / "tuned"]
    refused = run_tool(train_net, "--config-file", se_config, *flags, *overrides)
    assert refused.returncode == 2
    line = refused.stderr.strip().splitlines()[-1]
    assert line.startswith("error: the weights don't fit the config: roi_heads.box_predictor.")
    assert "NUM_CLASSES contradicts the file" in line
    tuned = run_tool(
        train_net, "--reset-predictor", "--config-file", se_config, *flags, *overrides, "SOLVER.BASE_LR", "0.0"
    )
    assert tuned.returncode == 0, tuned.stderr
    old, new = (torch.load(tmp_path / run / "model_final.pth", weights_only=True)["model"] for run in ("four", "tuned"))
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert changed
    assert all(key.startswith("roi_heads.box_predictor.") for key in changed)


def test_coco_with_its_real_category_ids(run_tool, train_net, se_config, shared_data, tmp_path) -> None:
    """80 classes whose ids have gaps: 1 to 90 in the file, 0 to 79 in the model, 1 to 90 in the predictions."""
    coco = shared_data / "coco_mini"
    flags = []
    for split in ("train", "val"):
        content = json.loads((coco / "annotations" / f"instances_{split}2017.json").read_text())
        content["images"] = content["images"][:40]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        flags += [f"--{split}-json", tmp_path / f"{split}.json", f"--{split}-images", coco / f"{split}2017"]
    overrides = [
        *(*SMALL, "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "OUTPUT_DIR", tmp_path / "run"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    ]
    done = run_tool(train_net, "--config-file", se_config, *flags, *overrides)
    assert done.returncode == 0, done.stderr
    annotations = tmp_path / "val.json"
    categories = {entry["id"]: entry["name"] for entry in json.loads(annotations.read_text())["categories"]}
    assert max(categories) == 90
    results = json.loads((tmp_path / "run" / "inference" / "results.json").read_text())
    assert results["categories"] == [categories[key] for key in sorted(categories)]
    predictions = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert {entry["category_id"] for entry in json.loads(predictions.read_text())} <= set(categories)
    reference = evaluate_with_pycocotools(annotations, predictions)
    assert results["bbox"]["AP"] == pytest.approx(100 * reference.stats[0], abs=1e-6)
