"""The predictor with random weights, compared with detectron2's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from PIL import Image

from se_detection import UserError
from se_detection.inference.predictor import SEPredictor

from .small_runs import CLASSES, IMAGES, KINDS, assert_same, run_config, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A function that returns the run of a kind, created at the first call."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_run(tmp_path_factory.mktemp("runs") / "run", *KINDS[kind])
        return made[kind]

    return run


@pytest.fixture(scope="module")
def predictor(runs) -> SEPredictor:
    return SEPredictor.from_run(runs("Faster R-CNN"))


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> SEPredictor:
    """With IGNORE_PADDING."""
    folder = tmp_path_factory.mktemp("steady") / "run"
    return SEPredictor.from_run(write_run(folder, "MODEL.SE.IGNORE_PADDING", "True", *KINDS["Mask R-CNN"]))


def differs(one: Instances, other: Instances) -> bool:
    return len(one) != len(other) or not torch.allclose(one.scores, other.scores, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_predictor_matches_detectron2s(runs, kind) -> None:
    run = runs(kind)
    theirs = DefaultPredictor(run_config(run))
    predictor = SEPredictor.from_run(str(run))
    for array in IMAGES[:2]:
        expected = theirs(array)
        assert_same(predictor(array), expected["instances"])
    extra = {"Mask R-CNN": {"pred_masks"}, "Keypoint R-CNN": {"pred_keypoints", "pred_keypoint_heatmaps"}}
    extra["Panoptic FPN"] = extra["Mask R-CNN"]
    fields = set(predictor(IMAGES[0]).get_fields())
    assert fields == {"pred_boxes", "scores", "pred_classes"} | extra.get(kind, set())
    if kind == "Panoptic FPN":
        (output,) = predictor.outputs([IMAGES[1]])
        torch.testing.assert_close(output["sem_seg"], expected["sem_seg"], rtol=0, atol=0)
        assert torch.equal(output["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert output["panoptic_seg"][1] == expected["panoptic_seg"][1]
        assert output["panoptic_seg"][0].shape == IMAGES[1].shape[:2]


def test_lists_are_batched_in_order(steady) -> None:
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


@pytest.mark.parametrize("kind", ["Faster R-CNN", "RGB"])
def test_channel_order_of_files_images_and_arrays(runs, kind, tmp_path) -> None:
    predictor = SEPredictor.from_run(runs(kind))
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
    assert predictor.classes == tuple(CLASSES)
    assert {0, 1, 2, 3} >= set(predictor(IMAGES[0]).pred_classes.tolist())


def test_a_fused_predictor_gives_the_same_detections(runs) -> None:
    run = runs("Mask R-CNN")
    fused = SEPredictor.from_run(run, fuse=True)
    assert len(fused.model.state_dict()) < len(SEPredictor.from_run(run).model.state_dict())
    assert_same(fused(IMAGES[0]), SEPredictor.from_run(run)(IMAGES[0]), atol=1e-2)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("nowhere.jpg", {}, r"nowhere\.jpg: no such file"),
        (Path("/"), {}, "/: no such file"),
        (3, {}, "int is not an image type; give a numpy array, a PIL image or a path"),
        (IMAGES[0].astype(np.float32), {}, r"an array of shape \(96, 128, 3\) and type float32 is not an image"),
        (IMAGES[0][:, :, 0], {}, r"shape \(96, 128\) and type uint8 is not an image"),
        (np.stack([IMAGES[0]] * 2), {}, "several images as a list"),
        (IMAGES[0][:0], {}, r"shape \(0, 128, 3\)"),
        (Image.new("RGB", (0, 4)), {}, "the Image has no pixels"),
        (Image.new("I;16", (8, 8), 300), {}, r"the Image can't be used: pixels above 255 \(mode I;16\)"),
        (np.zeros((2, 9000, 3), np.uint8), {}, "9000x2 pixels are too long and thin"),
        (IMAGES[0], {"channel_order": "rgb"}, "channel_order: 'rgb' is not one of BGR, RGB"),
        (IMAGES, {"batch_size": 0}, "batch_size: 0 is less than 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_images_are_rejected(predictor, given, options, message) -> None:
    with pytest.raises(UserError, match=message):
        predictor(given, **options)


def test_a_model_without_boxes_is_rejected(tmp_path) -> None:
    overrides = ("MODEL.META_ARCHITECTURE", "ProposalNetwork")
    predictor = SEPredictor.from_run(write_run(tmp_path / "run", *overrides))
    with pytest.raises(UserError, match="ProposalNetwork has no box outputs; give a detector"):
        predictor(IMAGES[0])
