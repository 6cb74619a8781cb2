import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image

from se_detection.inference.detector import Detector
from se_detection.runs.categories import run_categories

from ..helpers import raises
from .conftest import CATEGORIES
from .small_runs import run_config


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return Detector(trained)


@pytest.mark.parametrize("fuse", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_detections_match_the_runs_evaluation(trained, detector, fuse) -> None:
    if fuse:
        unfused, detector = detector, Detector(trained, fuse=True)
        assert detector.fingerprint != unfused.fingerprint
        assert len(detector.predictor.model.state_dict()) < len(unfused.predictor.model.state_dict())
    images = json.loads((trained.parent / "annotations" / "val.json").read_text())["images"]
    evaluated = json.loads((trained / "inference" / "coco_instances_results.json").read_text())
    for image in images:
        expected = [entry for entry in evaluated if entry["image_id"] == image["id"]]
        found = detector(read_image(str(trained.parent / "val" / image["file_name"]), "BGR"), image["id"])
        assert len(found) == len(expected) > 20
        for ours, theirs in zip(found, expected, strict=True):
            assert [ours[key] for key in ("image_id", "category_id")] == [image["id"], theirs["category_id"]]
            np.testing.assert_allclose(
                [*ours["bbox"], ours["score"]], [*theirs["bbox"], theirs["score"]], atol=1e-3 if fuse else 1e-4
            )


@pytest.mark.slow
def test_weights_can_be_given_and_must_fit(trained, detector, tmp_path) -> None:
    content = torch.load(trained / "model_final.pth", weights_only=True)
    key = "roi_heads.box_predictor.cls_score.bias"
    content["model"][key][-1] += 50  # the background's
    torch.save(content, tmp_path / "other.pth")
    other = Detector(trained, tmp_path / "other.pth")
    assert other.fingerprint != detector.fingerprint == Detector(trained).fingerprint
    image = read_image(str(next((trained.parent / "val").glob("*.png"))), "BGR")
    assert max(entry["score"] for entry in other(image, 1)) < 1e-6 < detector(image, 1)[0]["score"]

    del content["model"][key]
    torch.save(content, tmp_path / "part.pth")
    with raises("weights.partial_heads", key):
        Detector(trained, tmp_path / "part.pth")


def test_invalid_runs_are_rejected(trained, tmp_path) -> None:
    with raises("run.no_config", "config.yaml"):
        Detector(tmp_path)
    # Data sets that no test of this process has registered.
    text = re.sub(r"\bgaps_(train|val)\b", r"unknown_\1", (trained / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(text)
    with raises("run.no_checkpoint", tmp_path):
        Detector(tmp_path)
    shutil.copy(trained / "model_final.pth", tmp_path)
    with raises("run.no_classes", "run.json", f"--eval-only --resume --config-file {tmp_path}/config.yaml OUTPUT_DIR"):
        Detector(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"classes": ["cup", "plate"]}))
    with raises("run.other_classes", "2 classes", "4"):
        Detector(tmp_path)


def test_category_ids_are_those_of_the_data_set_if_known(trained, tmp_path) -> None:
    cfg = run_config(trained)
    assert run_categories(trained, cfg) == CATEGORIES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        for catalog in (MetadataCatalog, DatasetCatalog):
            if name in catalog:
                catalog.remove(name)
    record = json.loads((trained / "run.json").read_text())
    for data in record["data"].values():
        data["json"] = str(tmp_path / "gone.json")
    (tmp_path / "run.json").write_text(json.dumps(record))
    names = list(CATEGORIES.values())
    assert run_categories(tmp_path, cfg) == dict(enumerate(names, 1))
    # Annotations with other classes belong to other data.
    for name, data in record["data"].items():
        data["json"] = str(tmp_path / f"{name}.json")
        content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "spoon"}]}
        Path(data["json"]).write_text(json.dumps(content))
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert run_categories(tmp_path, cfg) == dict(enumerate(names, 1))

    # detectron2's own sets need no record.
    cfg.DATASETS.TEST = ("coco_2017_val",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    (tmp_path / "run.json").unlink()
    coco = run_categories(tmp_path, cfg)
    assert (coco[1], coco[90], 12 in coco) == ("person", "toothbrush", False)
    assert list(coco.values()) == MetadataCatalog.get("coco_2017_val").thing_classes
