"""Each of detectron2's detectors with an SE backbone: training, inference, TTA, fused, and in batches."""

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

from se_detection.modeling.fuse.fuse_detector import fuse_for_inference
from se_detection.modeling.squeeze_excitation import SqueezeExcitation

from .detectors import CHECKS, DETECTORS, KEYPOINTS, MASKS, PANOPTIC, Detector, build, small_config
from .shapes import ShapesImage, average_precision, draw

STEPS = 100
# res2 to res5 have 3, 4, 6 and 3 blocks.
GATES = 16


@dataclass
class Trained:
    """A detector that is overfitted to its images."""

    detector: Detector
    cfg: CfgNode
    model: nn.Module
    images: list[ShapesImage]


@pytest.fixture(scope="module", params=CHECKS["overfitted"])
def trained(request) -> Trained:
    torch.manual_seed(0)
    detector = DETECTORS[request.param]
    cfg = small_config(detector)
    model = build(detector, cfg)
    images = [draw(seed, classes=detector.classes) for seed in range(2)]
    examples = [image.example() for image in images]
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.2)
    with EventStorage():
        for _ in range(STEPS):
            optimizer.zero_grad()
            sum(model(examples).values()).backward()
            optimizer.step()
            schedule.step()
    return Trained(detector, cfg, model.eval(), images)


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


@pytest.mark.parametrize("name", CHECKS["trained a step"])
def test_every_gate_gets_gradients(name) -> None:
    detector = DETECTORS[name]
    model = build(detector, small_config(detector)).train()
    gates = {key: module for key, module in model.named_modules() if isinstance(module, SqueezeExcitation)}
    assert len(gates) == GATES
    with EventStorage():
        losses = model([draw(seed, classes=detector.classes).example() for seed in range(2)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    for key, gate in gates.items():
        for layer in (gate.fc1, gate.fc2):
            assert layer.weight.grad.abs().max() > 0, key


def test_it_overfits_its_images(trained) -> None:
    outputs = predict(trained.model, *(image.input() for image in trained.images))
    kinds = ["bbox"]
    kinds += ["segm"] if MASKS in trained.detector.outputs else []
    kinds += ["keypoints"] if KEYPOINTS in trained.detector.outputs else []
    for kind in kinds:
        precision = average_precision(trained.images, [output["instances"] for output in outputs], kind)
        assert precision > 0.8, kind
    if PANOPTIC in trained.detector.outputs:
        for image, output in zip(trained.images, outputs, strict=True):
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


def test_detections_are_inside_the_image(trained) -> None:
    """The image is padded, and the output size differs from the input size."""
    height, width = 180, 238
    (output,) = predict(trained.model, {**part_of(trained.images[0], 90, 119), "height": height, "width": width})
    instances = output["instances"]
    assert len(instances) > 0
    assert instances.image_size == (height, width)
    assert ((instances.scores > 0) & (instances.scores <= 1)).all()
    assert ((instances.pred_classes >= 0) & (instances.pred_classes < trained.detector.classes)).all()
    ends = torch.tensor([width, height, width, height])
    assert ((instances.pred_boxes.tensor >= 0) & (instances.pred_boxes.tensor <= ends)).all()
    # They match the objects, scaled to the output size.
    truth = trained.images[0].example()["instances"].gt_boxes
    truth.scale(2, 2)
    assert pairwise_iou(truth, instances.pred_boxes).amax(dim=1).min() > 0.5
    assert instances.has(MASKS) == (MASKS in trained.detector.outputs)
    if instances.has(MASKS):
        assert instances.pred_masks.shape == (len(instances), height, width)
        assert instances.pred_masks.dtype == torch.bool
    assert instances.has(KEYPOINTS) == (KEYPOINTS in trained.detector.outputs)
    if instances.has(KEYPOINTS):
        assert instances.pred_keypoints.shape == (len(instances), 4, 3)
        low, high = instances.pred_boxes.tensor[:, None].split(2, dim=2)
        points = instances.pred_keypoints[..., :2]
        assert ((points >= low - 1) & (points <= high + 1)).all()
    assert (PANOPTIC in output) == (PANOPTIC in trained.detector.outputs)
    if PANOPTIC in output:
        panoptic, segments = output[PANOPTIC]
        assert output["sem_seg"].shape == (3, height, width)
        assert panoptic.shape == (height, width)
        assert set(panoptic.unique().tolist()) - {0} == {segment["id"] for segment in segments}


def test_test_time_augmentation(trained) -> None:
    cfg = trained.cfg.clone()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (96, 100), 200
    inputs = [image.input() for image in trained.images]
    if not trained.detector.tta:
        refusal = r"only supported on GeneralizedRCNN|keypoint is not supported|multiple values for .* 'do_postprocess'"
        # A copy, because a failed call leaves the mask head switched off.
        model = copy.deepcopy(trained.model)
        with pytest.raises((AssertionError, TypeError), match=refusal):
            predict(GeneralizedRCNNWithTTA(cfg, model), *inputs)
        return
    outputs = predict(GeneralizedRCNNWithTTA(cfg, trained.model), *inputs)
    for image, instances in zip(trained.images, [output["instances"] for output in outputs], strict=True):
        truth = image.example()["instances"]
        same_class = truth.gt_classes[:, None] == instances.pred_classes
        overlaps, best = (pairwise_iou(truth.gt_boxes, instances.pred_boxes) * same_class).max(dim=1)
        assert overlaps.min() > 0.5
        assert instances.has(MASKS) == (MASKS in trained.detector.outputs)
        if instances.has(MASKS):
            masks = torch.stack([mask for thing, _, mask in image.segments() if thing])
            both, either = masks & instances.pred_masks[best], masks | instances.pred_masks[best]
            # On average: TTA averages masks over augmented images, and only one was trained on.
            assert (both.sum(dim=(1, 2)) / either.sum(dim=(1, 2))).mean() > 0.5


def test_the_fused_detector_gives_the_same_results(trained) -> None:
    fused = fuse_for_inference(trained.model)
    assert {type(module).__name__ for module in fused.modules()} >= {"FusedBlock", "FoldedConv2d"}
    images = [image.input() for image in trained.images]
    for one, other in zip(predict(trained.model, *images), predict(fused, *images), strict=True):
        assert_same(one, other, 1e-3)


def test_ignore_padding_makes_results_independent_of_the_batch(trained) -> None:
    ours = build(trained.detector, small_config(trained.detector, MODEL__SE__IGNORE_PADDING=True)).eval()
    ours.load_state_dict(trained.model.state_dict())
    # This size needs no padding.
    whole = trained.images[0].input()
    assert_same(*predict(trained.model, whole), *predict(ours, whole), 1e-4)
    part, larger = part_of(trained.images[0], 90, 119), draw(5, 128, 160).input()
    for image in (whole, part):
        (alone,) = predict(ours, image)
        assert_same(alone, predict(ours, image, larger)[0], 1e-4)
        assert_same(alone, predict(ours, larger, image)[1], 1e-4)
        with pytest.raises(AssertionError):
            assert_same(*predict(trained.model, image), predict(trained.model, image, larger)[0], 1e-4)
