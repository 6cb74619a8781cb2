"""The predictor's detections in the package `supervision`."""

import numpy as np
import pytest
import supervision

from se_detection.inference.predictor import SEPredictor

from .small_runs import IMAGES, KINDS, write_run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Faster R-CNN", "Mask R-CNN"])
def test_supervision_reads_and_draws_instances(tmp_path, kind) -> None:
    predictor = SEPredictor.from_run(write_run(tmp_path / "run", *KINDS[kind]))
    instances = predictor(IMAGES[1])
    detections = supervision.Detections.from_detectron2({"instances": instances})
    height, width = IMAGES[1].shape[:2]
    assert len(detections) == len(instances) > 10
    assert np.array_equal(detections.xyxy, instances.pred_boxes.tensor.numpy())
    assert ((detections.xyxy >= 0) & (detections.xyxy <= [width, height, width, height])).all()
    assert np.array_equal(detections.confidence, instances.scores.numpy())
    assert [predictor.classes[number] for number in detections.class_id]
    if kind == "Mask R-CNN":
        assert detections.mask.shape == (len(instances), height, width)
        assert np.array_equal(detections.mask, instances.pred_masks.numpy())
    drawn = supervision.BoxAnnotator().annotate(IMAGES[1].copy(), detections)
    assert (drawn != IMAGES[1]).any()
    assert len(supervision.Detections.from_detectron2({"instances": instances[:0]})) == 0
