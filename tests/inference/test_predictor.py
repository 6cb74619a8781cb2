"""The predictor with random weights, compared with detectron2's."""

from pathlib import Path

import numpy as np
import pytest
import supervision
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from PIL import Image

from se_detection.inference.predictor import SEPredictor
from se_detection.runs.categories import run_categories

from ..helpers import raises
from .conftest import CATEGORIES
from .small_runs import CLASSES, IMAGES, KINDS, assert_same, image, run_config, write_run


def differs(one: Instances, other: Instances) -> bool:
    return len(one) != len(other) or not torch.allclose(one.scores, other.scores, atol=1e-4)


@pytest.mark.parametrize(
    "kind", ["Mask R-CNN", *(pytest.param(k, marks=pytest.mark.slow) for k in ("RGB", "Panoptic FPN"))]
)
def test_predictor_matches_detectron2s(tmp_path, kind) -> None:
    run = write_run(tmp_path / "run", *KINDS[kind])
    theirs = DefaultPredictor(run_config(run))
    predictor = SEPredictor.from_run(str(run))
    for array in IMAGES[:2]:
        expected = theirs(array)
        found = predictor(array)
        assert_same(found, expected["instances"])
    assert found.has("pred_masks") == (kind != "RGB")
    if kind == "Mask R-CNN":
        detections = supervision.Detections.from_detectron2({"instances": found})
        assert np.array_equal(detections.xyxy, found.pred_boxes.tensor.numpy())
        assert np.array_equal(detections.confidence, found.scores.numpy())
        assert np.array_equal(detections.mask, found.pred_masks.numpy())
    if kind == "Panoptic FPN":
        (output,) = predictor.outputs([IMAGES[1]])
        torch.testing.assert_close(output["sem_seg"], expected["sem_seg"], rtol=0, atol=0)
        assert torch.equal(output["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert output["panoptic_seg"][1] == expected["panoptic_seg"][1]


@pytest.mark.slow
def test_lists_are_batched_in_order(tmp_path) -> None:
    steady = SEPredictor.from_run(write_run(tmp_path / "run", "MODEL.SE.IGNORE_PADDING", "True", *KINDS["Mask R-CNN"]))
    shapes = []
    hook = steady.model.backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    together = steady(IMAGES, batch_size=2)
    hook.remove()
    # The resized images, padded to multiples of 32.
    assert shapes == [(2, 3, 160, 128), (1, 3, 96, 320)]
    for array, found in zip(IMAGES, together, strict=True):
        assert found.image_size == array.shape[:2]
        assert_same(found, steady(array), atol=1e-3)
    assert len(steady(tuple(IMAGES[:1]))) == 1
    assert steady([]) == []


def test_without_ignore_padding_batches_of_one_match_single_images(predictor) -> None:
    alone = [predictor(array) for array in IMAGES[:2]]
    assert differs(predictor(IMAGES[:2])[0], alone[0])
    for found, expected in zip(predictor(IMAGES[:2], batch_size=1), alone, strict=True):
        assert_same(found, expected)


def test_one_batch_is_read_at_a_time(predictor) -> None:
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield IMAGES[0]

    outputs = predictor.outputs(endless(), batch_size=3)
    assert taken == []
    for number in range(4):
        next(outputs)
        assert len(taken) == (3 if number < 3 else 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("Faster R-CNN", marks=pytest.mark.slow), "RGB"])
def test_channel_order_of_files_images_and_arrays(kind, tmp_path) -> None:
    predictor = SEPredictor.from_run(write_run(tmp_path / "run", *KINDS[kind]))
    bgr = IMAGES[0]
    path = tmp_path / "image.png"
    Image.fromarray(bgr[:, :, ::-1].copy()).save(path)
    assert np.array_equal(read_image(str(path), "BGR"), bgr)
    expected = predictor(bgr)
    rgb = bgr[:, :, ::-1]
    for same in (path, str(path), Image.open(path), Image.open(path).convert("RGBA")):
        assert_same(predictor(same), expected)
        assert_same(predictor(same, channel_order="RGB"), expected)
    assert_same(predictor(rgb, channel_order="RGB"), expected)
    assert differs(predictor(rgb), expected)
    # A list may mix them.
    for found in predictor([path, bgr, Image.open(path)], batch_size=3):
        assert_same(found, expected, atol=1e-3)


def test_classes_are_those_of_the_run(predictor) -> None:
    assert predictor.class_names == predictor.classes == tuple(CLASSES)
    assert {0, 1, 2, 3} >= set(predictor(IMAGES[0]).pred_classes.tolist())


def test_detections_of_a_score(predictor) -> None:
    found = predictor(IMAGES[0])
    limit = found.scores.median().item()
    kept = found.scores >= limit
    assert 0 < kept.sum() < len(found)
    for fewer in (predictor(IMAGES[0], score=limit), predictor(IMAGES[:1], score=limit)[0]):
        torch.testing.assert_close(fewer.scores, found.scores[kept], rtol=0, atol=0)
        torch.testing.assert_close(fewer.pred_boxes.tensor, found.pred_boxes.tensor[kept], rtol=0, atol=0)
    with raises("predict.score", "50"):
        predictor(IMAGES[0], score=50)


def test_drawn_detections_are_in_the_order_of_the_array(predictor, tmp_path) -> None:
    bgr = image(480, 640)
    rgb = bgr[:, :, ::-1]
    # With nothing to draw, it is the image.
    assert np.array_equal(predictor.draw(bgr, score=1.0), bgr)
    assert np.array_equal(predictor.draw(rgb, score=1.0, channel_order="RGB"), rgb)
    path = tmp_path / "image.png"
    Image.fromarray(np.ascontiguousarray(rgb)).save(path)
    drawn = predictor.draw(bgr, score=0.0)
    assert (drawn.shape, drawn.dtype) == ((480, 640, 3), np.uint8)
    assert np.array_equal(predictor.draw(path, score=0.0, channel_order="RGB"), drawn[:, :, ::-1])
    assert (drawn != bgr).any()
    # A small image is enlarged, for its labels.
    assert predictor.draw(IMAGES[0]).shape == (480, 640, 3)


def test_the_constructor_is_detectron2s_with_weights_and_names(trained) -> None:
    cfg = run_config(trained)
    before = cfg.dump()
    predictor = SEPredictor(cfg, class_names=CLASSES)
    assert_same(predictor(IMAGES[0]), DefaultPredictor(cfg)(IMAGES[0])["instances"])
    assert predictor.categories == dict(enumerate(CLASSES, 1))
    assert cfg.dump() == before
    text = f"SEPredictor(GeneralizedRCNN with se_resnet_fpn 18, 4 classes, {trained}/model_final.pth, "
    assert repr(predictor).startswith(text)
    with raises("predict.class_names", "1 class name for a detector of 4"):
        SEPredictor(cfg, class_names=["cup"])
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ("nobodys",)
    with raises("run.no_classes", "nobodys"):
        SEPredictor(cfg)
    cfg.MODEL.WEIGHTS = ""
    with raises("weights.none", "MODEL.WEIGHTS"):
        SEPredictor(cfg, class_names=CLASSES)
    with raises("weights.not_found", "no.pth"):
        SEPredictor(cfg, "no.pth", class_names=CLASSES)


def test_a_run_of_detectron2s_own_trainer(trained, tmp_path) -> None:
    """It has a config, a checkpoint and no record; its data may be registered or not."""
    cfg = run_config(trained)
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ("registered_elsewhere",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "model_final.pth").symlink_to(trained / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with raises("run.no_classes", "class_names"):
        SEPredictor.from_run(tmp_path)
    assert SEPredictor.from_run(tmp_path, class_names=CLASSES).class_names == tuple(CLASSES)
    register_coco_instances("registered_elsewhere", {}, str(trained.parent / "annotations" / "val.json"), "")
    assert run_categories(tmp_path, cfg) == CATEGORIES


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ("nowhere.jpg", "data.bad_image", "nowhere.jpg can't be used: no such file"),
        (Path("/"), "data.bad_image", "no such file"),
        (IMAGES[0].astype(np.float32), "predict.not_an_image", "(96, 128, 3) and type float32"),
        (IMAGES[0][:, :, 0], "predict.not_an_image", "(96, 128) and type uint8"),
        (IMAGES[0][:, :, :2], "predict.not_an_image", "(96, 128, 2)"),
        (np.stack([IMAGES[0]] * 2), "predict.not_an_image", "several images as a list"),
        (IMAGES[0][:0], "predict.not_an_image", "(0, 128, 3)"),
        (Image.new("RGB", (0, 4)), "data.bad_image", "the Image can't be used: it has no pixels"),
        (Image.new("I;16", (8, 8), 300), "data.bad_image", "pixels above 255"),
        (np.zeros((2, 9000, 3), np.uint8), "data.too_thin", "9000x2"),
    ],
)
def test_invalid_images_are_rejected(predictor, given, code, named) -> None:
    with raises(code, named):
        predictor(given)


def test_other_channel_orders_are_rejected(predictor) -> None:
    with raises("predict.channel_order", "'rgb'"):
        predictor(IMAGES[0], channel_order="rgb")
