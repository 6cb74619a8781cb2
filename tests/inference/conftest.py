"""A run with its evaluation by detectron2, on data whose category ids have gaps; and a fake detector."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from PIL import Image

from se_detection.data.coco_sets import register_coco_json
from se_detection.data.toy import make_toy_dataset
from se_detection.inference.predictor import SEPredictor

from ..helpers import fewer_blocks
from .small_runs import CLASSES, run_config, write_run

# In each stage of a ResNet.
ONE_BLOCK = (1, 1, 1, 1)
CATEGORIES = {3: "circle", 7: "square", 9: "triangle", 20: "cross"}


@pytest.fixture(autouse=True, scope="module")
def _one_block() -> Iterator[None]:
    with fewer_blocks(ONE_BLOCK):
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run with random weights that keeps all detections; next to it, `val/` and `annotations/val.json`."""
    folder = tmp_path_factory.getbasetemp() / "trained обучено 例"
    run = folder / "run"
    # pytest calls this again for the tests of another folder.
    if run.exists():
        return run
    folder.mkdir()
    data = {}
    for split, count in (("train", 4), ("val", 3)):
        json_file = make_toy_dataset(folder, split=split, count=count)
        content = json.loads(json_file.read_text())
        ids = dict(zip((category["id"] for category in content["categories"]), CATEGORIES, strict=True))
        for category in content["categories"]:
            category["id"] = ids[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]
        json_file.write_text(json.dumps(content))
        data[f"gaps_{split}"] = {"json": str(json_file), "images": str(folder / split)}
        register_coco_json(f"gaps_{split}", json_file, folder / split)
    # Session fixtures are made before `_one_block`.
    with fewer_blocks(ONE_BLOCK):
        write_run(run, "DATASETS.TRAIN", "('gaps_train',)", "DATASETS.TEST", "('gaps_val',)")
        model = DefaultPredictor(cfg := run_config(run)).model
    (run / "run.json").write_text(json.dumps({"classes": CLASSES, "data": data}))
    evaluator = COCOEvaluator("gaps_val", tasks=("bbox",), output_dir=str(run / "inference"), use_fast_impl=False)
    results = inference_on_dataset(model, build_detection_test_loader(cfg, "gaps_val"), evaluator)
    (run / "inference" / "results.json").write_text(json.dumps(results))
    return run


@pytest.fixture(scope="session")
def predictor(trained) -> SEPredictor:
    with fewer_blocks(ONE_BLOCK):
        return SEPredictor.from_run(trained)


class FakeDetector:
    """Detects a plate, whose left edge is at `left` or the mean grey of the image, and a cup with a lower score."""

    def __init__(
        self, folder: Path, name: str = "fake", *, fingerprint: str = "0" * 64, left: float | None = None
    ) -> None:
        self.left = left
        self.name = name
        self.weights = folder / name / "model_final.pth"
        self.fingerprint = fingerprint
        self.categories = {3: "cup", 7: "plate"}
        self.calls: list[int] = []
        self.before = lambda number: None

    def __call__(self, image, image_id):
        self.before(len(self.calls))
        self.calls.append(image_id)
        left = float(round(image.mean())) if self.left is None else self.left
        plate = {"image_id": image_id, "category_id": 7, "bbox": [left, 20.0, 30.0, 30.0], "score": 0.9}
        cup = {"image_id": image_id, "category_id": 3, "bbox": [5.0, 60.0, 20.0, 20.0], "score": 0.4}
        return [plate, cup]


@pytest.fixture
def fake(tmp_path) -> FakeDetector:
    return FakeDetector(tmp_path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of three grey images, 160x120, of grey 20, 60 and 100."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, grey in enumerate((20, 60, 100)):
        Image.new("RGB", (160, 120), (grey,) * 3).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def clip(tmp_path) -> Path:
    """A video of six grey frames, 160x120, of grey 20, 40, ..., at 5 frames per second."""
    path = tmp_path / "clip.avi"
    write_video(path, [np.full((120, 160, 3), 20 * (number + 1), np.uint8) for number in range(6)])
    return path


def write_video(path: Path, frames: list) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 5, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
