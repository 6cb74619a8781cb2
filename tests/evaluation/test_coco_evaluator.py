import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator, coco_evaluation
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image

from se_detection.data.coco_format import image_path
from se_detection.data.coco_sets import check_registered
from se_detection.evaluation.coco_evaluator import COCODetectionEvaluator, build_evaluator
from se_detection.runs.evaluation_data import open_evaluation_data
from se_detection.runs.trained_run import TrainedRun

from ..helpers import raises

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
NAME = "evaluation_test_val"


@pytest.fixture
def register(tmp_path):
    """A function that registers annotations as a data set named `NAME`."""

    def register(annotations):
        json_file = tmp_path / "annotations.json"
        json_file.write_text(json.dumps(annotations))
        register_coco_instances(NAME, {}, str(json_file), str(tmp_path / "images"))
        DatasetCatalog.get(NAME)
        return json_file

    yield register
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def feed(evaluator, annotations, results):
    """Gives an evaluator results as a model does: by image, categories counted from 0, boxes by their corners."""
    numbers = {category["id"]: number for number, category in enumerate(annotations["categories"])}
    evaluator.reset()
    for image in annotations["images"]:
        mine = [item for item in results if item["image_id"] == image["id"]]
        boxes = torch.tensor([item["bbox"] for item in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([item["score"] for item in mine])
        instances.pred_classes = torch.tensor([numbers[item["category_id"]] for item in mine], dtype=torch.int64)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])


def test_results_are_those_of_pycocotools(register, annotations, detect, reference, tmp_path) -> None:
    json_file = register(annotations)
    found = detect(annotations, seed=1, jitter=0.1)
    evaluator = COCODetectionEvaluator(NAME, output_dir=str(tmp_path / "inference"))
    feed(evaluator, annotations, found)
    returned = evaluator.evaluate()

    written = json.loads((tmp_path / "inference" / "results.json").read_text())
    boxes = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    by_score = {box["score"]: box for box in boxes}
    for item in found:
        box = by_score[float(np.float32(item["score"]))]
        assert (box["image_id"], box["category_id"]) == (item["image_id"], item["category_id"])
    assert len(boxes) == len(found)
    expected = 100 * reference(annotations, boxes)[:6]
    assert [written["bbox"][metric] for metric in METRICS] == pytest.approx(expected, abs=1e-9)
    assert list(written) == [
        *("dataset", "annotations", "image_root", "images", "categories", "bbox", "per_class"),
    ]
    assert written["dataset"] == NAME
    assert (written["annotations"], written["image_root"]) == (str(json_file), str(tmp_path / "images"))
    assert written["images"] == 12
    assert written["categories"] == ["cup", "plate", "fork"]
    for category in annotations["categories"][:2]:
        alone = {
            **annotations,
            "categories": [category],
            "annotations": [a for a in annotations["annotations"] if a["category_id"] == category["id"]],
        }
        mine = [box for box in boxes if box["category_id"] == category["id"]]
        assert written["per_class"][category["name"]] == pytest.approx(100 * reference(alone, mine)[0])
    assert written["per_class"]["fork"] is None

    upstream = COCOEvaluator(NAME, output_dir=str(tmp_path / "upstream"), use_fast_impl=False)
    feed(upstream, annotations, found)
    torch.testing.assert_close(dict(returned["bbox"]), dict(upstream.evaluate()["bbox"]), equal_nan=True)


def test_one_class_has_its_ap_by_class(register, annotations, detect, tmp_path) -> None:
    one = {**annotations, "categories": annotations["categories"][:1]}
    one["annotations"] = [item for item in annotations["annotations"] if item["category_id"] == 3]
    register(one)
    evaluator = COCODetectionEvaluator(NAME, output_dir=str(tmp_path))
    feed(evaluator, one, detect(one, seed=1, jitter=0.1))
    ap = evaluator.evaluate()["bbox"]["AP"]
    assert ap > 0
    assert json.loads((tmp_path / "results.json").read_text())["per_class"] == {"cup": ap}


@pytest.mark.parametrize("images_processed", [True, False])
def test_no_predictions_are_null(register, annotations, tmp_path, images_processed) -> None:
    register(annotations)
    (tmp_path / "coco_instances_results.json").write_text("of an older evaluation")
    evaluator = COCODetectionEvaluator(NAME, output_dir=str(tmp_path))
    evaluator.reset()
    if images_processed:
        feed(evaluator, annotations, [])
    returned = evaluator.evaluate()

    assert all(map(math.isnan, returned["bbox"].values())) if images_processed else returned == {}
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert written["bbox"] == dict.fromkeys(METRICS)
    assert written["per_class"] == dict.fromkeys(["cup", "plate", "fork"])
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_results_are_never_of_other_detections(register, annotations, detect, tmp_path, monkeypatch) -> None:
    register(annotations)
    evaluator = COCODetectionEvaluator(NAME, output_dir=str(tmp_path))
    feed(evaluator, annotations, detect(annotations, seed=1, jitter=0.1))
    evaluator.evaluate()
    assert (tmp_path / "results.json").is_file()
    detections = tmp_path / "coco_instances_results.json"
    before = detections.read_bytes()

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    # After detectron2 has written the detections.
    monkeypatch.setattr(coco_evaluation, "_evaluate_predictions_on_coco", stop)
    feed(evaluator, annotations, detect(annotations, seed=2, jitter=0.1))
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate()
    assert detections.read_bytes() != before
    assert not (tmp_path / "results.json").exists()


def test_masks_have_their_own_key(register, annotations, tmp_path) -> None:
    squares = [
        {**item, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "iscrowd": 0}
        for item in annotations["annotations"]
        for x, y, w, h in [item["bbox"]]
    ]
    register({**annotations, "annotations": squares})
    evaluator = COCODetectionEvaluator(NAME, output_dir=str(tmp_path))
    evaluator.reset()
    x, y, w, h = (round(length) for length in squares[0]["bbox"])
    instances = Instances((240, 320))
    instances.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]]).float())
    instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    instances.pred_masks = torch.zeros(1, 240, 320, dtype=torch.bool)
    instances.pred_masks[0, y : y + h, x : x + w] = True
    evaluator.process([{"image_id": squares[0]["image_id"]}], [{"instances": instances}])
    returned = evaluator.evaluate()
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["segm"]["AP"] == returned["segm"]["AP"]
    assert written["bbox"]["AP"] == returned["bbox"]["AP"]


def test_only_the_main_process_writes(register, annotations, detect, tmp_path, monkeypatch) -> None:
    register(annotations)
    found = detect(annotations, seed=1, jitter=0.1)
    evaluator = COCODetectionEvaluator(NAME, output_dir=str(tmp_path / "inference"))
    feed(evaluator, annotations, found)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}
    assert not (tmp_path / "inference").exists()

    alone = COCODetectionEvaluator(NAME, output_dir=str(tmp_path / "inference"), distributed=False)
    feed(alone, annotations, found)
    assert alone.evaluate()["bbox"]["AP"] > 0
    assert (tmp_path / "inference" / "results.json").is_file()


@pytest.fixture
def in_python(annotations):
    """Annotations as detectron2's dataset dicts, with keypoints, of a set that is registered without a file.

    The images are in two folders.
    """
    numbers = {category["id"]: number for number, category in enumerate(annotations["categories"])}
    items = []
    for image in annotations["images"]:
        mine = [
            {
                **item,
                "category_id": numbers[item["category_id"]],
                "bbox_mode": BoxMode.XYWH_ABS,
                "keypoints": [2.5, 3.5, 2],
            }
            for item in annotations["annotations"]
            if item["image_id"] == image["id"]
        ]
        file = f"/data/{image['id'] % 2}/{image['file_name']}"
        items.append({**image, "file_name": file, "image_id": image["id"], "annotations": mine})
    DatasetCatalog.register(NAME, lambda: items)
    MetadataCatalog.get(NAME).set(
        evaluator_type="coco",
        thing_classes=[category["name"] for category in annotations["categories"]],
        thing_dataset_id_to_contiguous_id=numbers,
    )
    yield items
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_corrected_labels_are_evaluated(in_python, annotations, detect, reference, tmp_path) -> None:
    """In an output folder with the annotations of an earlier evaluation, as of a resumed run, and in a new one."""
    found = detect(annotations, seed=1, jitter=0.1)

    def ap(folder: str, kind: type[COCOEvaluator] = COCODetectionEvaluator) -> float:
        evaluator = kind(NAME, output_dir=str(tmp_path / folder), use_fast_impl=False)
        feed(evaluator, annotations, found)
        return evaluator.evaluate()["bbox"]["AP"]

    def expected(folder: str) -> float:
        return (
            100 * reference(annotations, json.loads((tmp_path / folder / "coco_instances_results.json").read_text()))[0]
        )

    before = copy.deepcopy(in_python)
    first = ap("first")
    assert first == pytest.approx(expected("first"), abs=1e-9)
    assert in_python == before
    for item in (*annotations["annotations"], *(item for image in in_python for item in image["annotations"])):
        item["bbox"][0] = item["bbox"][0] + 12.0
    corrected = expected("first")
    assert abs(corrected - first) > 5
    assert ap("first") == ap("second") == pytest.approx(corrected, abs=1e-9)
    for folder in ("first", "second"):
        written = json.loads((tmp_path / folder / "results.json").read_text())
        assert written["bbox"]["AP"] == pytest.approx(corrected, abs=1e-9)
        truth = json.loads(Path(written["annotations"]).read_text())
        files = [image_path(written["annotations"], written["image_root"], image) for image in truth["images"]]
        assert files == [Path(item["file_name"]) for item in in_python]
        assert [item["bbox"] for item in truth["annotations"]] == [
            [round(side, 3) for side in item["bbox"]] for item in annotations["annotations"]
        ]

    # detectron2's own evaluator was used in between, and its folder is removed.
    ap("theirs", COCOEvaluator)
    shutil.rmtree(tmp_path / "theirs")
    check_registered(NAME)
    ap("theirs", COCOEvaluator)
    for item in (*annotations["annotations"], *(item for image in in_python for item in image["annotations"])):
        item["bbox"][1] = item["bbox"][1] + 12.0
    assert ap("second") == pytest.approx(expected("second"), abs=1e-9) != pytest.approx(corrected)


def test_processes_that_do_not_evaluate_write_no_annotations(in_python, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert len(COCODetectionEvaluator(NAME, output_dir=str(tmp_path / "out"))._coco_api.imgs) == len(in_python)
    assert not (tmp_path / "out").exists()


def test_an_analysis_needs_an_annotation_file(in_python, tmp_path) -> None:
    cfg = get_cfg()
    cfg.DATASETS.TEST = (NAME,)
    with raises("data.no_test_set", NAME, "--split"):
        open_evaluation_data(TrainedRun(tmp_path, cfg, torch.nn.Identity(), tmp_path / "model_final.pth"), None, None)


def test_evaluators_are_those_of_detectron2s_train_net(register, annotations, tmp_path) -> None:
    register(annotations)
    assert isinstance(build_evaluator(get_cfg(), NAME, str(tmp_path)), COCODetectionEvaluator)

    labels = np.random.default_rng(0).integers(3, size=(4, 6), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    files = {"file_name": "image.jpg", "sem_seg_file_name": str(tmp_path / "labels.png")}
    stuff = {"stuff_classes": ["things", "sky", "grass"], "stuff_dataset_id_to_contiguous_id": {0: 0, 1: 1, 2: 2}}
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: [files])
    MetadataCatalog.get(NAME).set(ignore_label=255, **stuff)
    metadata = vars(MetadataCatalog.get(NAME))
    metadata["evaluator_type"] = "coco_panoptic_seg"
    segmentation, detection, panoptic = build_evaluator(get_cfg(), NAME, str(tmp_path))._evaluators
    assert isinstance(segmentation, SemSegEvaluator)
    assert isinstance(detection, COCODetectionEvaluator)
    assert isinstance(panoptic, COCOPanopticEvaluator)

    # One of 24 pixels is wrong.
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 3).permute(2, 0, 1).float()
    scores[:, 0, 0] = scores[:, 0, 0].roll(1)
    segmentation.reset()
    segmentation.process([files], [{"sem_seg": scores}])
    assert segmentation.evaluate()["sem_seg"]["pACC"] == pytest.approx(100 * 23 / 24)

    metadata["evaluator_type"] = "lvis"
    with raises("data.bad_evaluator", NAME, "lvis", "coco_panoptic_seg"):
        build_evaluator(get_cfg(), NAME, str(tmp_path))
