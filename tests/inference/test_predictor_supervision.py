"""The predictor's detections in the package `supervision`."""

import importlib.util

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from se_detection.inference.predictor import SEPredictor

from .small_runs import IMAGES, KINDS, write_run


@pytest.fixture(scope="module", params=["Faster R-CNN", "Mask R-CNN"])
def predictor(request, tmp_path_factory) -> SEPredictor:
    return SEPredictor.from_run(write_run(tmp_path_factory.mktemp("supervision") / "run", *KINDS[request.param]))


def read_as_supervision_does(result: dict[str, Instances]) -> dict[str, np.ndarray | None]:
    """Converts Instances like `supervision.Detections.from_detectron2` (0.31.2)."""
    instances = result["instances"]
    return {
        "xyxy": instances.pred_boxes.tensor.cpu().numpy(),
        "confidence": instances.scores.cpu().numpy(),
        "mask": instances.pred_masks.cpu().numpy() if hasattr(instances, "pred_masks") else None,
        "class_id": instances.pred_classes.cpu().numpy().astype(int),
    }


def test_instances_have_the_fields_of_supervision(predictor) -> None:
    for array, instances in zip(IMAGES, predictor(IMAGES), strict=True):
        read = read_as_supervision_does({"instances": instances})
        number, (height, width) = len(instances), array.shape[:2]
        assert number > 10
        assert read["xyxy"].shape == (number, 4)
        assert (read["xyxy"][:, 2:] >= read["xyxy"][:, :2]).all()
        assert (read["xyxy"] >= 0).all()
        assert (read["xyxy"] <= [width, height, width, height]).all()
        assert read["confidence"].shape == read["class_id"].shape == (number,)
        assert ((read["confidence"] >= 0) & (read["confidence"] <= 1)).all()
        assert set(read["class_id"]) <= set(range(len(predictor.classes)))
        assert (read["mask"] is not None) == predictor.cfg.MODEL.MASK_ON
        if read["mask"] is not None:
            assert read["mask"].dtype == bool
            assert read["mask"].shape == (number, height, width)


@pytest.mark.skipif(importlib.util.find_spec("supervision") is None, reason="supervision is not installed")
def test_supervision_reads_instances(predictor) -> None:
    import supervision

    instances = predictor(IMAGES[1])
    detections = supervision.Detections.from_detectron2({"instances": instances})
    assert len(detections) == len(instances)
    for name, values in read_as_supervision_does({"instances": instances}).items():
        assert np.array_equal(getattr(detections, name), values) if values is not None else detections.mask is None
    detections["class_name"] = np.array(predictor.classes)[detections.class_id]
    best = detections[detections.confidence > instances.scores.median().item()]
    assert len(best) == int((instances.scores > instances.scores.median()).sum())
    assert list(best["class_name"]) == [predictor.classes[number] for number in best.class_id]
    drawn = supervision.BoxAnnotator().annotate(IMAGES[1].copy(), best)
    assert drawn.shape == IMAGES[1].shape
    assert (drawn != IMAGES[1]).any()


def test_supervision_reads_empty_instances(predictor) -> None:
    nothing = predictor(IMAGES[0])[:0]
    read = read_as_supervision_does({"instances": nothing})
    assert read["xyxy"].shape == (0, 4)
    assert read["class_id"].shape == (0,)
    assert not torch.is_floating_point(nothing.pred_classes)
