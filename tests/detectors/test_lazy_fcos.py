"""FCOS, a lazy config only, with an SE and a plain backbone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn

from se_detection.modeling.squeeze_excitation import SqueezeExcitation

CONFIGS = Path(__file__).parents[2] / "configs" / "lazy" / "COCO-Detection"
CHANNELS = 32
BOXES = [[[8.0, 8.0, 40.0, 40.0]], [[30.0, 12.0, 86.0, 52.0], [4.0, 30.0, 28.0, 60.0]]]


def small_fcos(name: str, backbone: str) -> nn.Module:
    """A small FCOS for training from scratch, with GN and two classes."""
    model = LazyConfig.load(str(CONFIGS / f"{name}.py")).model
    model.backbone.bottom_up.update(name=backbone, norm="GN", freeze_at=0)
    model.backbone.out_channels = model.backbone.top_block.in_channels = CHANNELS
    model.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 5, conv_dims=[CHANNELS])
    model.num_classes = 2
    return instantiate(model)


@pytest.fixture
def images() -> list[dict[str, Any]]:
    """Bright and dark rectangles on noise."""
    images = []
    for boxes in BOXES:
        image = torch.randint(100, 140, (3, 64, 96), dtype=torch.uint8)
        for label, (left, top, right, bottom) in enumerate(boxes):
            image[:, int(top) : int(bottom), int(left) : int(right)] = (250, 5)[label]
        instances = Instances((64, 96), gt_boxes=Boxes(boxes), gt_classes=torch.arange(len(boxes)))
        images.append({"image": image, "instances": instances, "height": 64, "width": 96})
    return images


@pytest.mark.parametrize(
    ("name", "backbone"), [("fcos_R_50_FPN_1x", "resnet18"), ("fcos_SE_R_50_FPN_1x", "se_resnet18")]
)
def test_gradients_reach_the_backbone(name, backbone, images) -> None:
    model = small_fcos(name, backbone)
    with EventStorage():
        losses = model(images)
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gates = [module for module in model.modules() if isinstance(module, SqueezeExcitation)]
    assert len(gates) == (8 if backbone.startswith("se_") else 0)
    # Not all parameters: FCOS has scales for levels without any assigned object.
    parameters = [parameter for gate in gates for parameter in gate.parameters()]
    parameters += list(model.backbone.bottom_up.stem.parameters())
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in parameters)


def test_overfitting(images) -> None:
    model = small_fcos("fcos_SE_R_50_FPN_1x", "se_resnet18")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with EventStorage():
        for _ in range(40):
            optimizer.zero_grad()
            sum(model(images).values()).backward()
            optimizer.step()
    with torch.no_grad():
        outputs = model.eval()(images)
    for output, boxes in zip(outputs, BOXES, strict=True):
        detections = output["instances"][output["instances"].scores > 0.5]
        overlap = pairwise_iou(Boxes(boxes), detections.pred_boxes)
        assert overlap.amax(dim=1).min() > 0.7
        assert detections.pred_classes[overlap.argmax(dim=1)].tolist() == list(range(len(boxes)))
