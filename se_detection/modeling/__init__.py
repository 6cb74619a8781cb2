"""The networks: the SE block, residual blocks, stems, SE-ResNets, and the builders in detectron2's registry."""

from .padding import ignore_padding, ignore_padding_in_heads
from .roi_heads import SERes5ROIHeads
from .se_resnet import (
    build_retinanet_se_resnet_fpn_backbone,
    build_se_resnet_backbone,
    build_se_resnet_fpn_backbone,
    make_se_resnet,
)
from .squeeze_excitation import SqueezeExcitation
from .timm_backbone import (
    TimmBackbone,
    build_retinanet_timm_fpn_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    create_timm_backbone,
)

__all__ = [
    "SERes5ROIHeads",
    "SqueezeExcitation",
    "TimmBackbone",
    "build_retinanet_se_resnet_fpn_backbone",
    "build_retinanet_timm_fpn_backbone",
    "build_se_resnet_backbone",
    "build_se_resnet_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "create_timm_backbone",
    "ignore_padding",
    "ignore_padding_in_heads",
    "make_se_resnet",
]
