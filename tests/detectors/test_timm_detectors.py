"""detectron2's detectors with networks of timm: they train, overfit, load their own checkpoints, and are fused."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch import nn

from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.checkpoint.timm_weights import assumptions_of
from se_detection.config.buildable import check_model
from se_detection.config.meta_device import Uninitialized
from se_detection.config.timm_config import backbone_label, norm_and_freeze_keys, which_network
from se_detection.modeling import create_timm_backbone
from se_detection.modeling.fuse import fuse_for_inference
from se_detection.runs.recipe import is_of_backbone

from ..helpers import raises, randomize_norms, relative_error
from .detectors import DETECTORS, LAZY, small_config
from .shapes import draw

pytestmark = pytest.mark.slow

NETWORKS = ("mobilenetv3_small_050", "regnety_002", "repvit_m0_9")
BUILDERS = {"retinanet": "build_retinanet_timm_fpn_backbone", "faster_rcnn_dc5": "build_timm_backbone"}
SMALL = {"MODEL.TIMM.FREEZE_AT": 0, "MODEL.TIMM.NORM": "BN"}
# (detector, network): each detector, and each network.
PAIRS = (
    *(("faster_rcnn_fpn", network) for network in NETWORKS),
    *((detector, "mobilenetv3_small_050") for detector in ("retinanet", "mask_rcnn_fpn", "faster_rcnn_dc5", "fcos")),
    *((detector, "mobilenetv3_small_050") for detector in ("cascade_mask_rcnn", "keypoint_rcnn", "panoptic_fpn")),
)


def timm_config(detector: str, network: str, **overrides: Any) -> CfgNode:
    cfg = small_config(DETECTORS[detector], MODEL__TIMM__NAME=network, **overrides)
    for key, value in SMALL.items():
        if key.replace(".", "__") not in overrides:
            cfg.merge_from_list([key, value])
    cfg.MODEL.BACKBONE.NAME = BUILDERS.get(detector, "build_timm_fpn_backbone")
    if detector == "retinanet":
        cfg.MODEL.TIMM.OUT_FEATURES = ["res3", "res4", "res5"]
    if detector == "faster_rcnn_dc5":
        cfg.MODEL.TIMM.OUT_FEATURES, cfg.MODEL.TIMM.OUTPUT_STRIDE = ["res5"], 16
    return cfg


def build(detector: str, network: str) -> nn.Module:
    if detector != "fcos":
        return build_model(timm_config(detector, network))
    config = LazyConfig.load(str(LAZY / f"{DETECTORS['fcos'].config}.py")).model
    config.backbone.bottom_up = L(create_timm_backbone)(
        name=network, norm="BN", freeze_at=0, out_features=["res3", "res4", "res5"]
    )
    config.backbone.out_channels = config.backbone.top_block.in_channels = 32
    if "in_channels" in config.backbone.top_block and config.backbone.top_block.get("in_feature") == "res5":
        config.backbone.top_block.in_channels = 288
    config.head.update(input_shape=[ShapeSpec(channels=32)] * 5, conv_dims=[64])
    config.num_classes = 2
    return instantiate(config)


@pytest.mark.parametrize(
    ("detector", "network"),
    PAIRS,
)
def test_a_step_and_its_checkpoint(detector, network, tmp_path) -> None:
    model = build(detector, network).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    images = [draw(seed, classes=DETECTORS[detector].classes).example() for seed in range(2)]
    with EventStorage():
        losses = model(images)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    state = model.state_dict()
    inside = {key: parameter for key, parameter in model.named_parameters() if ".network." in key}
    assert all(parameter.grad.isfinite().all() for parameter in inside.values())
    # The last norm of RegNet's blocks starts at 0, so the layers before it have no gradient yet.
    assert sum(not torch.equal(state[key], before[key]) for key in inside) > 20
    # The weights of the whole detector come back strictly, and into the same outputs.
    assumptions = None if detector == "fcos" else assumptions_of(timm_config(detector, network))
    StrictCheckpointer(model, str(tmp_path), assumptions=assumptions).save("model_final")
    with Uninitialized():
        other = build(detector, network)
    StrictCheckpointer(other, assumptions=assumptions, needs_heads=True).load(str(tmp_path / "model_final.pth"))
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    if detector != "faster_rcnn_fpn":
        return
    key = next(key for key in state if ".network." in key and key.endswith(".weight"))
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    saved["model"][f"{key}s"] = saved["model"].pop(key)
    torch.save(saved, tmp_path / "renamed.pth")
    with raises("weights.partial_backbone", key):
        StrictCheckpointer(other, assumptions=assumptions).load(str(tmp_path / "renamed.pth"))


def losses_in_training(model: nn.Module, images: list[dict], *, steps: int) -> Iterator[float]:
    """Trains on the same images in each step, and yields its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(steps):
        with EventStorage():
            loss = sum(model(images).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_two_images_are_overfitted() -> None:
    model = build("faster_rcnn_fpn", "mobilenetv3_small_050").train()
    images = [draw(seed).example() for seed in range(2)]
    totals = list(losses_in_training(model, images, steps=40))
    assert sum(totals[-5:]) < 0.5 * sum(totals[:5])


def test_fused_detectors_have_the_same_maps() -> None:
    """FPN and heads are fused; timm's own layers are left as they are."""
    model = randomize_norms(build("faster_rcnn_fpn", "regnety_002")).eval()
    fused = fuse_for_inference(model)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, expected = fused.backbone(image), model.backbone(image)
    assert max(relative_error(maps[key], expected[key]) for key in expected) < 1e-5


def test_copies_are_independent() -> None:
    """The trainer's moving average is a copy. The hooks in some of timm's networks hold the maps of a forward pass."""
    with torch.no_grad():
        for network in ("xception41", "regnety_002"):
            model = create_timm_backbone(network, freeze_at=0).eval()
            other = copy.deepcopy(model)
            for parameter in other.parameters():
                parameter.data *= 0
            image = torch.randn(1, 3, 64, 64)
            before = model(image)["res5"]
            assert not torch.equal(other(image)["res5"], before)
            assert torch.equal(model(image)["res5"], before)


@pytest.mark.parametrize(
    ("detector", "overrides", "code", "named"),
    [
        ("faster_rcnn_c4", {}, "model.no_c4", "SERes5ROIHeads"),
        ("faster_rcnn_fpn", {"MODEL__TIMM__OUT_FEATURES": ["res2", "res3"]}, "config.bad_value", "res4, res5"),
        ("faster_rcnn_fpn", {"MODEL__TIMM__NAME": ""}, "config.unknown_network", "MODEL.TIMM.NAME"),
        ("faster_rcnn_fpn", {"MODEL__TIMM__KWARGS": ["stem_width"]}, "config.bad_value", "key=value"),
        ("faster_rcnn_fpn", {"MODEL__TIMM__OUTPUT_STRIDE": 16}, "config.not_buildable", "Strides"),
        ("faster_rcnn_fpn", {"MODEL__SE__IGNORE_PADDING": True}, "model.padding", "TimmBackbone"),
        ("faster_rcnn_fpn", {"MODEL__WEIGHTS": "timm://resnet18.a1_in1k"}, "weights.other_network", "resnet18"),
    ],
)
def test_refused_configs(detector, overrides, code, named) -> None:
    overrides = {"MODEL__TIMM__NAME": "regnety_002", **overrides}
    cfg = timm_config(detector, overrides.pop("MODEL__TIMM__NAME"), **overrides)
    if detector == "faster_rcnn_c4":
        cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    with raises(code, named):
        check_model(cfg)


def test_the_input_must_be_that_of_the_weights() -> None:
    weights = "timm://tf_efficientnetv2_b0.in1k"
    cfg = timm_config("faster_rcnn_fpn", "tf_efficientnetv2_b0", MODEL__WEIGHTS=weights)
    lines = ["INPUT.FORMAT: RGB", "MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53]", "MODEL.PIXEL_STD: [58.395, 57.12, 57"]
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "BGR", [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]
    with raises("weights.other_input", weights, *lines):
        check_model(cfg)
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN = "RGB", [123.675, 116.28, 103.53]
    with raises("weights.other_input", weights, *lines):
        check_model(cfg)
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    check_model(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME = "timm://tf_mobilenetv3_small_100", "tf_mobilenetv3_small_100.in1k"
    with raises("weights.other_input", "[127.5, 127.5, 127.5]"):
        check_model(cfg)


def test_which_keys_belong_to_the_recipe() -> None:
    """Runs with other networks are compared; how these are trained must be the same."""
    assert all(map(is_of_backbone, ("MODEL.TIMM.NAME", "MODEL.TIMM.KWARGS", "MODEL.TIMM.INSERT_SE")))
    assert not any(map(is_of_backbone, ("MODEL.TIMM.NORM", "MODEL.TIMM.FREEZE_AT", "MODEL.TIMM.DROP_PATH")))
    cfg = timm_config("retinanet", "regnety_002")
    assert which_network(cfg) == {"network": "regnety_002"}
    assert backbone_label(cfg) == "retinanet_timm_fpn regnety_002"
    cfg.MODEL.SE.FPN = cfg.MODEL.SE.ROI = True
    assert backbone_label(cfg) == "retinanet_timm_fpn regnety_002 with SE in FPN, after RoIAlign"
    assert norm_and_freeze_keys(cfg) == ("MODEL.TIMM.NORM", "MODEL.TIMM.FREEZE_AT")


def test_networks_that_need_divisible_images_get_them() -> None:
    cfg = timm_config("faster_rcnn_fpn", "dla46_c")
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    with torch.device("meta"), Uninitialized():
        backbone = build_backbone(cfg)
    # FPN's own would be 8.
    assert backbone.size_divisibility == 32
