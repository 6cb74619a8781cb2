"""SE trunks: blocks, stems, and the builders that detectron2 finds in its registry."""

from .ignore_padding import ignore_padding
from .se_resnet import (
    build_retinanet_se_resnet_fpn_backbone,
    build_se_resnet_backbone,
    build_se_resnet_fpn_backbone,
    create_backbone,
)

__all__ = [
    "build_retinanet_se_resnet_fpn_backbone",
    "build_se_resnet_backbone",
    "build_se_resnet_fpn_backbone",
    "create_backbone",
    "ignore_padding",
]
