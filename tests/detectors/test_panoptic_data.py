"""Training and evaluation on a panoptic data set."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from PIL import Image
from pycocotools import mask as masks

from se_detection.engine.hooks import Evaluation
from se_detection.engine.trainer import Trainer

from ..helpers import raises
from .custom_data import load, reference, write_set
from .shapes import draw

pytestmark = pytest.mark.usefixtures("catalogs")


def register_panoptic(folder: Path) -> str:
    """Registers a data set of things and stuff with detectron2's function; returns its name."""
    things = write_set(folder, "images", count=2, suffix=".jpg")
    content = json.loads(things.read_text())
    (folder / "stuff").mkdir()
    (folder / "panoptic").mkdir()
    panoptic = []
    for image in content["images"]:
        semantic = draw(image["id"]).semantic
        name = f"{image['id']}.png"
        Image.fromarray(semantic.astype(np.uint8)).save(folder / "stuff" / name)
        # The red channel has the segment's id: 1 and 2 are stuff, objects start at 11.
        segments = [{"id": kind, "category_id": 100 + kind, "iscrowd": 0} for kind in (1, 2)]
        ids = semantic.copy()
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                (rle,) = masks.frPyObjects(item["segmentation"], *semantic.shape)
                ids[masks.decode(rle).astype(bool) & (semantic == 0)] = 10 + item["id"]
                segments.append({"id": 10 + item["id"], "category_id": item["category_id"], "iscrowd": 0})
        for segment in segments:
            segment["area"] = int((ids == segment["id"]).sum())
        colours = np.zeros((*ids.shape, 3), np.uint8)
        colours[:, :, 0] = ids
        Image.fromarray(colours).save(folder / "panoptic" / name)
        panoptic.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    stuff = [{"id": 100 + kind, "name": name, "isthing": 0} for kind, name in ((1, "sky"), (2, "ground"))]
    categories = [*({**category, "isthing": 1} for category in content["categories"]), *stuff]
    panoptic_json = folder / "panoptic.json"
    panoptic_json.write_text(
        json.dumps({"images": content["images"], "annotations": panoptic, "categories": categories})
    )
    metadata = {
        "thing_classes": ["kite", "trapezoid"],
        "thing_dataset_id_to_contiguous_id": {10: 0, 20: 1},
        "stuff_classes": ["things", "sky", "ground"],
        "stuff_dataset_id_to_contiguous_id": {0: 0, 101: 1, 102: 2},
    }
    register_coco_panoptic_separated(
        *("drawn", metadata, str(folder / "images"), str(folder / "panoptic"), str(panoptic_json)),
        *(str(folder / "stuff"), str(things)),
    )
    return "drawn_separated"


@pytest.mark.slow
def test_panoptic_data_is_evaluated_as_in_detectron2s_train_net(tmp_path, monkeypatch) -> None:
    name = register_panoptic(tmp_path)
    values = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,), "MODEL.ROI_HEADS.NUM_CLASSES": 2}
    if find_spec("panopticapi") is None:
        with raises("run.no_panopticapi", "pip install"):
            load("panoptic_fpn", [], tmp_path / "run", values)
        monkeypatch.setattr("se_detection.engine.checks.find_spec", lambda name: True)
    no_stuff = {"DATASETS.TRAIN": ("se_toy_train",), "MODEL.ROI_HEADS.NUM_CLASSES": 4, "DATASETS.TEST": ()}
    for detector, other, code, *named in (
        ("panoptic_fpn", {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54}, "config.contradicts_data", 54, "drawn_separated", 3),
        ("panoptic_fpn", {"TEST.AUG.ENABLED": True}, "config.no_augmentation", "PanopticFPN"),
        ("panoptic_fpn", no_stuff, "data.no_stuff", "se_toy_train"),
        ("mask_rcnn_fpn", {}, "data.needs_stuff", "GeneralizedRCNN"),
    ):
        with raises(code, *named):
            load(detector, [], tmp_path / "run", values | other)

    cfg = load("panoptic_fpn", [], tmp_path / "run", values)
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer._hooks = [hook for hook in trainer._hooks if not isinstance(hook, Evaluation)]
    trainer.train()
    ours = Trainer.build_evaluator(cfg, name)
    theirs = import_module("tools.train_net").build_evaluator(cfg, name, f"{cfg.OUTPUT_DIR}/inference")
    for one, other in zip(ours._evaluators, theirs._evaluators, strict=True):
        assert isinstance(one, type(other))
        assert one._output_dir == other._output_dir
    # Without the last, which needs panopticapi.
    loader = Trainer.build_test_loader(cfg, name)
    results = inference_on_dataset(trainer.model, loader, DatasetEvaluators(ours._evaluators[:2]))
    with torch.no_grad():
        outputs = [trainer.model.eval()(batch)[0]["sem_seg"].argmax(0) for batch in loader]
    truth, predicted = np.stack([draw(number).semantic for number in (1, 2)]), np.stack(outputs)
    kinds = [(truth == kind, predicted == kind) for kind in range(3)]
    ious = [(one & other).sum() / (one | other).sum() for one, other in kinds]
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-6)
    expected = reference(
        tmp_path / "images.json", Path(cfg.OUTPUT_DIR, "inference/coco_instances_results.json"), "segm"
    )
    assert results["segm"]["AP"] == pytest.approx(expected[0], abs=1e-6)
