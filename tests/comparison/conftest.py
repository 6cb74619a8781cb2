"""A small data set with images, made-up detections, and run folders to compare."""

import copy
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import se_detection  # noqa: F401  adds its nodes to detectron2's config


@pytest.fixture(scope="session")
def make_annotations():
    """A function that makes annotations; see `annotations`."""

    def make_annotations():
        rng = np.random.default_rng(0)
        images = [{"id": 5 * i, "file_name": f"{i}.png", "height": 240, "width": 320} for i in range(1, 13)]
        categories = [{"id": 3, "name": "cup"}, {"id": 7, "name": "plate"}, {"id": 9, "name": "fork"}]
        boxes = []
        for image in images[:-1]:
            for _ in range(rng.integers(2, 6)):
                x, y = rng.uniform(0, 120, 2)
                w, h = rng.choice([20, 60, 110]) * rng.uniform(0.8, 1.1, 2)
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": image["id"],
                        "category_id": int(rng.choice([3, 7])),
                        "bbox": [float(x), float(y), float(w), float(h)],
                        "area": float(w * h),
                        "iscrowd": int(len(boxes) == 4),
                    }
                )
        return {"images": images, "annotations": boxes, "categories": categories}

    return make_annotations


@pytest.fixture
def annotations(make_annotations):
    """Twelve images, of which the last is empty, with boxes of all three sizes, a crowd, and category ids with gaps."""
    return make_annotations()


@pytest.fixture(scope="session")
def detect():
    """A function that makes detections from annotations: moved by `jitter` box sizes, some missed, some false."""

    def detect(annotations, *, seed, jitter, missed=0.1):
        rng = np.random.default_rng(seed)
        results = []
        for item in annotations["annotations"]:
            x, y, w, h = item["bbox"]
            moved = [x + rng.normal(0, jitter) * w, y + rng.normal(0, jitter) * h, w, h]
            stray = [*rng.uniform(0, 100, 2), *rng.uniform(10, 100, 2)]
            for box, chance in ((moved, 1 - missed), (stray, 0.3)):
                if rng.random() < chance:
                    entry = {key: item[key] for key in ("image_id", "category_id")}
                    results.append({**entry, "bbox": [float(v) for v in box], "score": float(rng.random())})
        return results

    return detect


@pytest.fixture(scope="session")
def reference():
    """A function that returns pycocotools' 12 metrics, AP to ARl, from 0 to 1, with NaN for -1."""

    def reference(annotations, results):
        coco = COCO()
        coco.dataset = copy.deepcopy(annotations)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return np.where(evaluation.stats == -1, np.nan, evaluation.stats)

    return reference


@pytest.fixture(scope="session")
def make_runs(detect):
    """A function that makes run folders; see `runs`."""

    def make_runs(folder, annotations):
        images = folder / "images"
        images.mkdir()
        for image in annotations["images"]:
            Image.new("RGB", (320, 240), (90, 120, 90)).save(images / image["file_name"])
        json_file = folder / "val.json"
        json_file.write_text(json.dumps(annotations))
        results = {
            "annotations": str(json_file),
            "image_root": str(images),
            "categories": [category["name"] for category in annotations["categories"]],
            "checkpoint": {"file": "model_final.pth", "iteration": 39999, "sha256": "0a"},
        }
        record = {"backbone": "build_resnet_fpn_backbone", "depth": 50, "backbone_input": [480, 640]}
        sizes = {"plain": (41_700_000, 80.5), "se": (44_200_000, 80.6)}
        for seed, (name, (parameters, gflops)) in enumerate(sizes.items()):
            found = detect(annotations, seed=seed, jitter=0.2 - 0.18 * seed)
            inference = folder / "output" / name / "inference"
            inference.mkdir(parents=True)
            (inference / "results.json").write_text(json.dumps(results))
            (inference / "coco_instances_results.json").write_text(json.dumps(found))
            content = {**record, "parameters": parameters, "backbone_gflops": gflops}
            Path(inference.parent, "run.json").write_text(json.dumps(content))
            cfg = get_cfg()
            cfg.OUTPUT_DIR = str(inference.parent)
            cfg.DATASETS.TRAIN = ("train_cups",)
            cfg.MODEL.BACKBONE.NAME = {"plain": "build_resnet_fpn_backbone", "se": "build_se_resnet_fpn_backbone"}[name]
            Path(inference.parent, "config.yaml").write_text(cfg.dump())
            Path(inference.parent, "last_checkpoint").write_text("model_final.pth")
        return folder / "output" / "plain", folder / "output" / "se"

    return make_runs


@pytest.fixture
def runs(tmp_path, annotations, make_runs):
    """Two run folders on the small set, `plain` and the better `se`, as tools/train_net.py writes them."""
    return make_runs(tmp_path, annotations)


@pytest.fixture
def seeds(runs, annotations, detect):
    """Two runs of each model."""
    models = []
    for number, run in enumerate(runs):
        again = run.with_name(f"{run.name}_2")
        shutil.copytree(run, again)
        found = detect(annotations, seed=number + 10, jitter=0.2 - 0.18 * number)
        (again / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
        models.append([run, again])
    return models


@pytest.fixture
def few_charts(monkeypatch) -> None:
    """Pages and folders of plots lack the charts of the details: drawing them takes longer than comparing."""
    for module in ("comparison_page", "comparison_plots"):
        monkeypatch.setattr(f"se_detection.comparison.{module}.CHARTS", {})


@pytest.fixture(scope="session")
def real_annotations(shared_data):
    """COCO's annotations of 60 real images, of the ten most frequent classes."""
    content = json.loads((shared_data / "coco_mini" / "annotations" / "instances_val2017.json").read_text())
    images = content["images"][:60]
    shown = {image["id"] for image in images}
    boxes = [item for item in content["annotations"] if item["image_id"] in shown]
    frequent = dict(Counter(item["category_id"] for item in boxes).most_common(10))
    return {
        "images": images,
        "annotations": [item for item in boxes if item["category_id"] in frequent],
        "categories": [category for category in content["categories"] if category["id"] in frequent],
    }
