"""Each of detectron2's detectors with an SE backbone: a training step, inference, TTA, fused, and in batches."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.fuse.fuse_detector import fuse_for_inference
from se_detection.modeling.squeeze_excitation import SqueezeExcitation

from ..helpers import fewer_blocks, randomize_norms
from .detectors import CHECKS, DETECTORS, KEYPOINTS, MASKS, PANOPTIC, Detector, build, small_config
from .shapes import ShapesImage, average_precision, draw

# With random weights, all detections have low scores; a few of the highest are kept.
KEEP_SOME = {
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "MODEL__RETINANET__TOPK_CANDIDATES_TEST": 20,
    "MODEL__RPN__POST_NMS_TOPK_TEST": 10,
    "TEST__DETECTIONS_PER_IMAGE": 5,
}
# The last layers of the scores, whose differences would be as small as rounding errors.
SCORES = ("objectness_logits", "cls_score", "cls_logits")


@dataclass
class Built:
    """A detector with random weights, and its images."""

    detector: Detector
    cfg: CfgNode
    model: nn.Module
    images: list[ShapesImage]


def build_shallow(detector: Detector, cfg: CfgNode) -> nn.Module:
    with fewer_blocks():
        return build(detector, cfg)


@pytest.fixture(
    scope="module",
    params=[name if name == "mask_rcnn_fpn" else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS],
)
def built(request) -> Built:
    torch.manual_seed(0)
    detector = DETECTORS[request.param]
    cfg = small_config(detector, **KEEP_SOME)
    model = randomize_norms(build_shallow(detector, cfg))
    for name, parameter in model.named_parameters():
        if any(part in name for part in SCORES) and name.endswith("weight"):
            parameter.data *= 30
    return Built(detector, cfg, model.eval(), [draw(seed, classes=detector.classes) for seed in range(2)])


@torch.no_grad()
def predict(model: nn.Module, *inputs: dict[str, Any]) -> list[dict[str, Any]]:
    return model(list(inputs))


def part_of(image: ShapesImage, height: int, width: int) -> dict[str, Any]:
    """The upper left part of an image; detectron2 pads it if the size needs it."""
    pixels = image.input()["image"][:, :height, :width]
    return {"image": pixels, "height": height, "width": width}


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Compares the detections, and the panoptic segmentation if there is one."""
    a, b = one["instances"], other["instances"]
    assert len(a) == len(b) > 0
    assert torch.equal(a.pred_classes, b.pred_classes)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=100 * tolerance)
    if a.has(MASKS):
        assert (a.pred_masks != b.pred_masks).double().mean() < tolerance
    if a.has(KEYPOINTS):
        # Keypoints are cells of a heat map that is resized to the box.
        torch.testing.assert_close(a.pred_keypoints[..., :2], b.pred_keypoints[..., :2], rtol=0, atol=1)
    if PANOPTIC in one:
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=0, atol=100 * tolerance)
        assert (one[PANOPTIC][0] != other[PANOPTIC][0]).double().mean() < tolerance


def test_every_gate_gets_gradients(built) -> None:
    torch.manual_seed(0)
    model = build_shallow(built.detector, small_config(built.detector)).train()
    gates = {key: module for key, module in model.named_modules() if isinstance(module, SqueezeExcitation)}
    # res2 to res5 have 2, 1, 1 and 2 blocks.
    assert len(gates) == 6
    with EventStorage():
        losses = model([image.example() for image in built.images])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    for key, gate in gates.items():
        for layer in (gate.fc1, gate.fc2):
            assert layer.weight.grad.abs().max() > 0, key


def test_detections_are_inside_the_image(built) -> None:
    """The image is padded, and the output size differs from the input size."""
    height, width = 180, 238
    (output,) = predict(built.model, {**part_of(built.images[0], 90, 119), "height": height, "width": width})
    instances = output["instances"]
    assert len(instances) > 0
    assert instances.image_size == (height, width)
    assert ((instances.scores > 0) & (instances.scores <= 1)).all()
    assert ((instances.pred_classes >= 0) & (instances.pred_classes < built.detector.classes)).all()
    ends = torch.tensor([width, height, width, height])
    assert ((instances.pred_boxes.tensor >= 0) & (instances.pred_boxes.tensor <= ends)).all()
    assert instances.has(MASKS) == (MASKS in built.detector.outputs)
    if instances.has(MASKS):
        assert instances.pred_masks.shape == (len(instances), height, width)
        assert instances.pred_masks.dtype == torch.bool
    assert instances.has(KEYPOINTS) == (KEYPOINTS in built.detector.outputs)
    if instances.has(KEYPOINTS):
        assert instances.pred_keypoints.shape == (len(instances), 4, 3)
        low, high = instances.pred_boxes.tensor[:, None].split(2, dim=2)
        points = instances.pred_keypoints[..., :2]
        assert ((points >= low - 1) & (points <= high + 1)).all()
    assert (PANOPTIC in output) == (PANOPTIC in built.detector.outputs)
    if PANOPTIC in output:
        panoptic, segments = output[PANOPTIC]
        assert output["sem_seg"].shape == (3, height, width)
        assert panoptic.shape == (height, width)
        assert set(panoptic.unique().tolist()) - {0} == {segment["id"] for segment in segments}


def test_test_time_augmentation(built) -> None:
    """With one size, that of the image, it gives what the detector gives."""
    cfg = built.cfg.clone()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (96,), 200, False
    inputs = [image.input() for image in built.images]
    if not built.detector.tta:
        refusal = r"only supported on GeneralizedRCNN|keypoint is not supported|multiple values for .* 'do_postprocess'"
        # A copy, because a failed call leaves the mask head switched off.
        with pytest.raises((AssertionError, TypeError), match=refusal):
            predict(GeneralizedRCNNWithTTA(cfg, copy.deepcopy(built.model)), *inputs)
        return
    plain = predict(built.model, *inputs)
    augmented = predict(GeneralizedRCNNWithTTA(cfg, built.model), *inputs)
    for one, other in zip(plain, augmented, strict=True):
        assert_same(one, {"instances": other["instances"]}, 1e-3)


def test_the_fused_detector_gives_the_same_results(built) -> None:
    fused = fuse_for_inference(built.model)
    assert {type(module).__name__ for module in fused.modules()} >= {"FusedBlock", "FoldedConv2d"}
    images = [image.input() for image in built.images]
    for one, other in zip(predict(built.model, *images), predict(fused, *images), strict=True):
        assert_same(one, other, 1e-3)


def test_ignore_padding_makes_results_independent_of_the_batch(built) -> None:
    cfg = small_config(built.detector, **KEEP_SOME, MODEL__SE__IGNORE_PADDING=True)
    with Uninitialized():
        ours = build_shallow(built.detector, cfg).eval()
    ours.load_state_dict(built.model.state_dict())
    # This size needs no padding.
    whole = built.images[0].input()
    assert_same(*predict(built.model, whole), *predict(ours, whole), 1e-4)
    part, larger = part_of(built.images[0], 90, 119), draw(5, 128, 160).input()
    for image in (whole, part):
        (alone,) = predict(ours, image)
        assert_same(alone, predict(ours, image, larger)[0], 1e-4)
        assert_same(alone, predict(ours, larger, image)[1], 1e-4)
        with pytest.raises(AssertionError):
            assert_same(*predict(built.model, image), predict(built.model, image, larger)[0], 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS["overfitted"])
def test_it_overfits_its_images(name) -> None:
    """Panoptic FPN also has masks; with keypoints, it has every output. As in Keypoint R-CNN, all objects are kites."""
    detector, steps = DETECTORS[name], 60
    model = build(detector, small_config(detector, MODEL__ROI_HEADS__NUM_CLASSES=1, MODEL__KEYPOINT_ON=True))
    images = [draw(seed, classes=1) for seed in range(2)]
    examples = [image.example() for image in images]
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    with EventStorage():
        for _ in range(steps):
            optimizer.zero_grad()
            sum(model(examples).values()).backward()
            optimizer.step()
            schedule.step()
    outputs = predict(model.eval(), *(image.input() for image in images))
    for kind in ("bbox", "segm", "keypoints"):
        precision = average_precision(images, [output["instances"] for output in outputs], kind)
        assert precision > 0.8, kind
    for image, output in zip(images, outputs, strict=True):
        truth = image.example()["instances"].gt_boxes
        assert pairwise_iou(truth, output["instances"].pred_boxes).amax(dim=1).min() > 0.5
        assert (output["sem_seg"].argmax(dim=0) == torch.from_numpy(image.semantic)).double().mean() > 0.9
        assert unmatched(image, *output[PANOPTIC]) == []


def unmatched(image: ShapesImage, panoptic: Tensor, segments: list[dict[str, Any]]) -> list[tuple[bool, int]]:
    """Objects and stuff that no segment of the same class matches with an IoU above 0.5, as in panoptic quality."""
    missed = []
    for thing, category, mask in image.segments():
        same_class = [panoptic == s["id"] for s in segments if (s["isthing"], s["category_id"]) == (thing, category)]
        if not any((segment & mask).sum() > 0.5 * (segment | mask).sum() for segment in same_class):
            missed.append((thing, category))
    return missed
