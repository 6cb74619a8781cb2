"""The command from training to evaluation, in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .conftest import CONFIG, TINY, data_flags, files, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("build", "fresh_catalogs")]


@pytest.fixture
def train(run_script, capsys) -> Callable[..., str]:
    """A function that runs tools/train_net.py, and returns its error message."""

    def run(*arguments: object, overrides: tuple[object, ...] = ()) -> str:
        capsys.readouterr()
        try:
            run_script("train_net.py", "--config-file", CONFIG, *arguments, *TINY, "SOLVER.MAX_ITER", 2, *overrides)
        except SystemExit as error:
            if error.code != 2:
                raise
            return capsys.readouterr().err.splitlines()[-1]
        return ""

    return run


def evaluate_with_pycocotools(annotations: Path, predictions: Path) -> COCOeval:
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_train_resume_and_evaluate_custom_data(train, tiny, tiny_flags, tmp_path) -> None:
    # As the folder of `tiny`: a space, and letters that are not Latin.
    run = tmp_path / "запуск 走"
    output = ("OUTPUT_DIR", run)
    assert train(*tiny_flags, overrides=output) == ""

    # The files that detectron2's users expect.
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
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

    # A second run into the same folder is refused, and leaves every byte alone.
    before = files(run)
    assert "[output.exists]" in train(*tiny_flags, overrides=output)
    assert files(run) == before

    # --resume continues where the run stopped.
    assert train("--resume", *tiny_flags, overrides=(*output, "SOLVER.MAX_ITER", 4)) == ""
    assert [line["iteration"] for line in read_metrics(run) if "total_loss" in line][-1] == 3
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 3
    assert "SOLVER.MAX_ITER was 2 when the run was last started, and is 4 now" in (run / "log.txt").read_text()
    assert [entry["iteration"] for entry in json.loads((run / "run.json").read_text())["resumed"]] == [2]

    # Evaluation alone finds the same AP, and leaves the training's config as it is.
    trained = json.loads((run / "inference" / "results.json").read_text())
    config = (run / "config.yaml").read_bytes()
    assert train("--eval-only", "--resume", *tiny_flags, overrides=output) == ""
    assert json.loads((run / "inference" / "results.json").read_text()) == trained
    assert (run / "config.yaml").read_bytes() == config

    # The fused detector has the same detections.
    found = json.loads(predictions.read_text())
    assert train("--eval-only", "--fuse", "--resume", *tiny_flags, overrides=output) == ""
    for faster, plain in zip(json.loads(predictions.read_text()), found, strict=True):
        assert [faster["image_id"], faster["category_id"]] == [plain["image_id"], plain["category_id"]]
        assert [*faster["bbox"], faster["score"]] == pytest.approx([*plain["bbox"], plain["score"]], abs=1e-3)

    assert "--fuse --resume" in json.loads((run / "run.json").read_text())["evaluated"]

    # --overwrite replaces the run, and nothing else that is in its folder.
    (run / "notes.txt").write_text("mine")
    assert train("--overwrite", *tiny_flags, overrides=output) == ""
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 1
    assert [line["iteration"] for line in read_metrics(run) if "total_loss" in line] == [1]
    assert "resumed" not in json.loads((run / "run.json").read_text())
    assert (run / "notes.txt").read_text() == "mine"


def test_other_classes_need_reset_predictor(train, tiny, tiny_flags, tmp_path, request) -> None:
    """A detector of four classes, fine-tuned on two: with --reset-predictor only its last layers are new."""
    assert train(*tiny_flags, overrides=("OUTPUT_DIR", tmp_path / "four")) == ""
    content = json.loads((tiny / "annotations" / "train.json").read_text())
    content["categories"] = content["categories"][:2]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] <= 2]
    two = tmp_path / "two.json"
    two.write_text(json.dumps(content))
    flags = ["--train-json", two, "--train-images", tiny / "train", "--val-json", two, "--val-images", tiny / "train"]
    overrides = ("MODEL.WEIGHTS", tmp_path / "four" / "model_final.pth", "OUTPUT_DIR", tmp_path / "tuned")
    refused = train(*flags, overrides=overrides)
    assert refused.startswith("error: the weights don't fit the config: roi_heads.box_predictor.")
    # detectron2's cosine schedule divides by the rate.
    still = ("SOLVER.BASE_LR", 0.0, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
    assert train("--reset-predictor", *flags, overrides=(*overrides, *still)) == ""
    old, new = (torch.load(tmp_path / run / "model_final.pth", weights_only=True)["model"] for run in ("four", "tuned"))
    changed = {key for key in old if "running" not in key and "num_batches" not in key}
    changed = {key for key in changed if not torch.equal(old[key], new[key])}
    assert changed
    assert all(key.startswith("roi_heads.box_predictor.") for key in changed)


def test_coco_with_its_real_category_ids(train, shared_data, tmp_path) -> None:
    """80 classes whose ids have gaps: 1 to 90 in the file, 0 to 79 in the model, 1 to 90 in the predictions."""
    coco = shared_data / "coco_mini"
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        content = json.loads((coco / "annotations" / f"instances_{split}2017.json").read_text())
        content["images"] = content["images"][:20]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] in kept]
        (tmp_path / "annotations" / f"{split}.json").write_text(json.dumps(content))
        (tmp_path / split).symlink_to(coco / f"{split}2017")
    assert train(*data_flags(tmp_path), overrides=("OUTPUT_DIR", tmp_path / "run")) == ""
    annotations = tmp_path / "annotations" / "val.json"
    categories = {entry["id"]: entry["name"] for entry in json.loads(annotations.read_text())["categories"]}
    assert max(categories) == 90
    results = json.loads((tmp_path / "run" / "inference" / "results.json").read_text())
    assert results["categories"] == [categories[key] for key in sorted(categories)]
    predictions = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert {entry["category_id"] for entry in json.loads(predictions.read_text())} <= set(categories)
    reference = evaluate_with_pycocotools(annotations, predictions)
    assert results["bbox"]["AP"] == pytest.approx(100 * reference.stats[0], abs=1e-6)
