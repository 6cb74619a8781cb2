import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.structures import Boxes, pairwise_iou

from se_detection import model_zoo
from se_detection.data.check.anchors import best_ious, fit_anchors, resize_boxes

from ...helpers import raises


def retinanet(cfg):
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in [32, 64, 128, 256, 512]]
    return cfg


def c4(cfg):
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    return cfg


@pytest.mark.parametrize("change", [lambda cfg: cfg, retinanet, c4])
def test_best_iou_matches_detectron2s_anchors(cfg, change) -> None:
    cfg = change(cfg)
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    head = cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.RPN
    shapes = [backbone.output_shape()[name] for name in head.IN_FEATURES]
    generator = build_anchor_generator(cfg, shapes)
    rng = np.random.default_rng(0)
    for height, width in [(200, 333), (64, 40)]:
        size = np.array([height, width])
        corners = np.sort(rng.uniform(0, 1, (60, 2, 2)) * size[::-1], axis=1)
        boxes = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0] + 0.5], axis=1)
        padded = torch.zeros(1, 3, height, width)
        if divisibility := backbone.size_divisibility:
            padded = torch.zeros(1, 3, *(-(-side // divisibility) * divisibility for side in (height, width)))
        with torch.device("meta"):
            features = backbone(padded.to("meta"))
        anchors = generator([torch.zeros(features[name].shape) for name in head.IN_FEATURES])
        xyxy = torch.tensor(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)).float()
        expected = pairwise_iou(Boxes(xyxy), Boxes.cat(anchors)).max(dim=1).values
        ours = best_ious(boxes, np.tile(size, (len(boxes), 1)), generator, backbone.size_divisibility)
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def test_boxes_are_resized_as_in_detectron2(cfg) -> None:
    sizes = [(333, 500), (40, 1000), (480, 640)]
    boxes = np.array([[1.0, 2, 30, 40], [5, 6, 900, 8], [0, 0, 640, 480]])
    after, resized = resize_boxes(boxes, sizes, cfg)
    augmentation = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    for index, (height, width) in enumerate(sizes):
        transform = augmentation.get_transform(np.zeros((height, width, 3)))
        x, y, w, h = boxes[index]
        left, top, right, bottom = transform.apply_box(np.array([[x, y, x + w, y + h]]))[0]
        np.testing.assert_allclose(resized[index], [left, top, right - left, bottom - top])
        assert tuple(after[index]) == (transform.new_h, transform.new_w)
    unchanged = cfg.clone()
    unchanged.INPUT.MIN_SIZE_TEST = 0
    np.testing.assert_array_equal(resize_boxes(boxes, sizes, unchanged)[1], boxes)


def test_boxes_are_counted_by_size_and_coverage(cfg) -> None:
    # The 800×800 images are not resized; anchors have sides of 32 to 512 and height / width of 0.5 to 2.
    boxes = [[100, 100, 8, 8], [200, 300, 20, 20], [200, 300, 64, 64], [0, 0, 799, 799], [0, 300, 800, 40]]
    fit = fit_anchors(boxes, [(800, 800)] * len(boxes), cfg)
    assert [(row["name"], row["boxes"], row["uncovered"]) for row in fit["classes"]] == [
        ("small", 2, 2),
        ("medium", 1, 0),
        ("large", 2, 2),
        ("all", 5, 4),
    ]
    assert (fit["too_small"], fit["too_large"], fit["too_long"]) == (2, 1, 1)
    assert fit["sides"] == pytest.approx((32, 512))
    assert fit["ratios"] == pytest.approx((0.5, 2))
    assert fit["classes"][-1]["side"] == pytest.approx(64)
    # The nearest anchor of 64 pixels, on a grid of 8, is 4 pixels away in y.
    assert fit["classes"][1]["iou"] == pytest.approx(60 / 68)


def test_a_config_with_other_anchors_is_refused(cfg) -> None:
    cfg = cfg.clone()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    with raises("config.unsupported_anchors", "RotatedAnchorGenerator"):
        fit_anchors([[0, 0, 9, 9]], [(40, 60)], cfg)


def test_project_configs_are_supported() -> None:
    for name in ("Toy/faster_rcnn_SE_R_18_FPN", "Paper/faster_rcnn_SE_R_50_FPN_2x"):
        assert fit_anchors([[0, 0, 9, 9]], [(40, 60)], model_zoo.get_config(name))["classes"][-1]["boxes"] == 1
