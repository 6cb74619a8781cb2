"""The networks that are compared: one config with different backbones."""

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from torch import nn

from se_detection.model_zoo import get_config

from .case import Case
from .timm_network import TimmNetwork

PLAIN, SE, TIMM_LEGACY, TIMM = "plain", "se", "legacy_seresnet", "seresnet"


def build_network(backbone: str, case: Case) -> nn.Module:
    """The case's part of a Faster R-CNN with FPN, in the case's mode, on its device.

    It is the network of `COCO-Detection/faster_rcnn_R_50_FPN_1x`: norms, stem and res2 are frozen. Weights are random,
    so that the RPN gives the heads of every network the largest number of proposals: all have the same work.

    Args:
        backbone: `plain` (detectron2's own), `se`, or the prefix of timm's name before the depth.
    """
    cfg = get_config(f"COCO-Detection/faster_rcnn_{'SE_' if backbone == SE else ''}R_50_FPN_1x")
    cfg.MODEL.DEVICE = case.device
    cfg.MODEL.RESNETS.DEPTH = case.depth
    if case.depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    if case.part == "detector":
        network = build_model(cfg)
        fpn = network.backbone
    else:
        network = fpn = build_backbone(cfg).to(case.device)
    if backbone in (TIMM_LEGACY, TIMM):
        fpn.bottom_up = TimmNetwork(f"{backbone}{case.depth}").to(case.device)
    if case.part == "backbone":
        network = fpn.bottom_up
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            # With new frozen norms, activations double in each block, and overflow float16 and the RPN.
            module.weight.fill_(0.5)
    return network.train(case.mode == "train")
