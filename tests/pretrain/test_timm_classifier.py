"""Networks of timm are pre-trained as classifiers, and the result is loaded into a detector."""

import pytest
import timm
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from timm.layers import DropPath
from torch import nn

from se_detection import model_zoo
from se_detection.config.buildable import check_backbone
from se_detection.pretrain.classifier import backbone_config, build_classifier
from se_detection.pretrain.pretrain_config import config_base

from .test_classifier import make_batch


def timm_config(**recipe: object) -> CfgNode:
    cfg = config_base()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.NORM, cfg.MODEL.TIMM.FREEZE_AT = "regnetx_002", "BN", 0
    for key, value in recipe.items():
        cfg.PRETRAIN[key] = value
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "last"),
    [
        ("regnetx_002", lambda: timm.create_model("regnetx_002", num_classes=3), "head.fc"),
        ("torchvision/shufflenet_v2_x0_5", lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=3), "fc"),
    ],
)
def test_logits_are_the_librarys(name, make, last) -> None:
    """These classify the average of the last map, too."""
    theirs = make().eval()
    cfg = timm_config()
    cfg.MODEL.TIMM.NAME = name
    ours = build_classifier(cfg, 3).eval()
    ours.backbone.load_state_dict(ours.backbone.with_own_names(theirs.state_dict()))
    ours.linear.load_state_dict(theirs.get_submodule(last).state_dict())
    batch = make_batch(2, 64)
    torch.testing.assert_close(ours(batch), theirs(ours.preprocess(batch)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_training_and_the_detectors_backbone() -> None:
    cfg = timm_config(STOCHASTIC_DEPTH=0.1)
    classifier = build_classifier(cfg, 3).train()
    rates = [module.drop_prob for module in classifier.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.1)
    classifier(make_batch(4, 64))["loss_cls"].backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())
    detectors = build_backbone(cfg).bottom_up
    weights = classifier.backbone.state_dict()
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in detectors.state_dict().items()
    }
    assert any(isinstance(module, nn.BatchNorm2d) for module in detectors.modules())


def test_se_in_fpn_is_not_pre_trained() -> None:
    cfg = backbone_config(model_zoo.get_config("CPU/faster_rcnn_efficientnet_lite0_SE_FPN"))
    assert not cfg.MODEL.SE.FPN
    check_backbone(cfg)
