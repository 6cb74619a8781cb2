"""AP of masks and keypoints on custom data, as in tools/train_net.py."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as masks

from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .custom_data import SIGMAS, flags, load, reference, train
from .shapes import SHAPES, draw

pytestmark = pytest.mark.usefixtures("catalogs")
METRICS = {
    "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "segm": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
}
# The detector, the data and the tasks.
CASES = {
    "boxes": ("retinanet", "things", ["bbox"]),
    "polygons": ("mask_rcnn_fpn", "things", ["bbox", "segm"]),
    "rle": ("mask_rcnn_fpn", "rle", ["bbox", "segm"]),
    "keypoints": ("keypoint_rcnn", "kites", ["bbox", "keypoints"]),
}
TTA = {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (64,)}


def load_case(data, case, run, **overrides):
    name, source, tasks = CASES[case]
    sigmas = {"TEST.KEYPOINT_OKS_SIGMAS": SIGMAS} if case == "keypoints" else {}
    return (
        load(name, flags(vars(data)[source], data.images[source]), run, sigmas | overrides),
        vars(data)[source],
        tasks,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["boxes", "rle", "keypoints"])
def test_ap_equals_pycocotools_on_the_written_results(data, case, tmp_path) -> None:
    # Two evaluations: after the first iteration, and at the end.
    evaluations = {"TEST.EVAL_PERIOD": 1, "SOLVER.BEST_METRIC": f"{CASES[case][2][-1]}/AP"}
    cfg, json_file, tasks = load_case(data, case, tmp_path, **evaluations, **(TTA if case == "rle" else {}))
    train(cfg)
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    for task in tasks:
        expected = reference(json_file, tmp_path / "inference" / "coco_instances_results.json", task)
        for metric, value in zip(METRICS[task], expected, strict=False):
            # pycocotools' -1 is detectron2's NaN.
            assert results[task][metric] == (pytest.approx(value, abs=1e-6) if value >= 0 else None)
        assert logged[-1][f"{task}/AP"] == pytest.approx(expected[0], abs=1e-6)
        if cfg.TEST.AUG.ENABLED:
            written = tmp_path / "inference_TTA" / cfg.DATASETS.TEST[0] / "coco_instances_results.json"
            expected = reference(json_file, written, task)
            assert logged[-1][f"{task}_TTA/AP"] == pytest.approx(expected[0], abs=1e-6)
            # TTA changes the boxes.
            assert written.read_text() != (tmp_path / "inference" / "coco_instances_results.json").read_text()
            augmented = json.loads(written.with_name("results.json").read_text())
            assert augmented["checkpoint"] == results["checkpoint"]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best[f"{tasks[-1]}/AP"] == max(line[f"{tasks[-1]}/AP"] for line in logged if f"{tasks[-1]}/AP" in line)


@pytest.mark.parametrize(
    "case", ["polygons", *(pytest.param(case, marks=pytest.mark.slow) for case in ("rle", "keypoints"))]
)
def test_ap_of_shifted_truth_equals_pycocotools(data, case, tmp_path) -> None:
    """Detections that are the truth shifted by a few pixels, in the evaluator of a run's config."""
    cfg, json_file, tasks = load_case(data, case, tmp_path)
    assert cfg.INPUT.MASK_FORMAT == ("bitmask" if case == "rle" else "polygon")
    evaluator = Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    evaluator.reset()
    for number in (1, 2):
        image = draw(number, classes=1 if case == "keypoints" else len(SHAPES))
        detections = Instances(image.semantic.shape)
        boxes = torch.tensor([item["bbox"] for item in image.annotations])
        boxes[:, 2:] += boxes[:, :2]
        detections.pred_boxes = Boxes(boxes + 2 * number)
        detections.scores = torch.tensor([0.9, 0.8]) / number
        detections.pred_classes = torch.tensor([item["category_id"] for item in image.annotations])
        if case == "keypoints":
            points = torch.tensor([item["keypoints"] for item in image.annotations]).reshape(2, -1, 3)
            detections.pred_keypoints = points + torch.tensor([2.0 * number, 0, 0])
        else:
            rles = [masks.frPyObjects(item["segmentation"], *detections.image_size) for item in image.annotations]
            shapes = np.stack([masks.decode(masks.merge(rle)) for rle in rles])
            detections.pred_masks = torch.from_numpy(np.roll(shapes, 2 * number, axis=2)).bool()
        evaluator.process([{"image_id": number}], [{"instances": detections}])
    results = evaluator.evaluate()
    assert list(results) == tasks
    for task in tasks:
        expected = reference(json_file, tmp_path / "inference" / "coco_instances_results.json", task)
        assert 10 < expected[0] < 95
        for metric, value in zip(METRICS[task], expected, strict=False):
            assert results[task][metric] == pytest.approx(value if value >= 0 else np.nan, abs=1e-6, nan_ok=True)


@pytest.mark.slow
def test_without_detections_there_is_no_ap(data, tmp_path) -> None:
    overrides = {"SOLVER.MAX_ITER": 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0}
    train(load_case(data, "polygons", tmp_path, **overrides)[0])
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert set(results["bbox"].values()) == set(results["segm"].values()) == {None}


@pytest.mark.slow
def test_keypoint_metadata_is_as_detectron2s(data, tmp_path) -> None:
    """Custom data with COCO's person category gets detectron2's builtin metadata, and needs no sigmas."""
    custom, builtin = tmp_path / "persons.json", MetadataCatalog.get("keypoints_coco_2017_val")
    names = list(builtin.keypoint_names)
    content = json.loads(data.kites.read_text())
    content["categories"] = [{"id": 10, "name": "person", "keypoints": names, "skeleton": [[16, 14], [14, 12]]}]
    for annotation in content["annotations"]:
        annotation |= {"keypoints": [*annotation["keypoints"], *[0] * 39]}
    custom.write_text(json.dumps(content))
    cfg = load("keypoint_rcnn", flags(custom, data.images["kites"]), tmp_path / "run")
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 17
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    assert metadata.keypoint_names == names
    assert sorted(metadata.keypoint_flip_map) == sorted(builtin.keypoint_flip_map)
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("left_ankle", "left_knee"),
        ("left_knee", "left_hip"),
    ]
    # Evaluation with the run's config works without the training data.
    (tmp_path / "run").mkdir()
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(cfg.dump())
    val_flags = flags(custom, data.images["kites"])[4:]
    arguments = [
        "--eval-only",
        "--config-file",
        saved,
        *val_flags,
        "MODEL.WEIGHTS",
        custom,
        "OUTPUT_DIR",
        tmp_path / "o",
    ]
    MetadataCatalog.pop(cfg.DATASETS.TRAIN[0])
    loaded = load_config(command_parser(train_command).parse_args(list(map(str, arguments))))
    assert loaded.DATASETS.TEST == cfg.DATASETS.TEST
