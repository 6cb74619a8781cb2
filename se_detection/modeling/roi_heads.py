"""detectron2's ROI heads with SE after RoIAlign (`MODEL.SE.ROI`), and in the res5 of C4 detectors."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from torch import nn

from ..config.se_config import SEConfig
from ..errors import UserError
from .insert_se import add_se_to_pooler
from .partial_load import refuse_partial_load
from .se_resnet import resnet_of_config


class _SEAfterRoIAlign:
    """Builds ROI heads whose poolers have SE, each its own, if `MODEL.SE.ROI` is set."""

    can_have_se = True

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        arguments: dict[str, Any] = super().from_config(cfg, input_shape)  # type: ignore[misc]
        if cfg.MODEL.SE.ROI:
            se, channels = SEConfig.from_cfg(cfg), input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
            for name in ("pooler", "box_pooler", "mask_pooler", "keypoint_pooler"):
                if arguments.get(name) is not None:
                    add_se_to_pooler(arguments[name], channels, se)
        return arguments


@ROI_HEADS_REGISTRY.register()
class SEStandardROIHeads(_SEAfterRoIAlign, StandardROIHeads):
    """detectron2's `StandardROIHeads`, with SE after RoIAlign if `MODEL.SE.ROI` is set."""


@ROI_HEADS_REGISTRY.register()
class SECascadeROIHeads(_SEAfterRoIAlign, CascadeROIHeads):
    """detectron2's `CascadeROIHeads`, with SE after RoIAlign if `MODEL.SE.ROI` is set."""


@ROI_HEADS_REGISTRY.register()
class SERes5ROIHeads(_SEAfterRoIAlign, Res5ROIHeads):
    """detectron2's `Res5ROIHeads` with SE in res5 (`MODEL.SE`), and after RoIAlign if `MODEL.SE.ROI` is set."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        if cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[-1]:
            raise UserError(
                "config.bad_value",
                "MODEL.RESNETS.DEFORM_ON_PER_STAGE: SERes5ROIHeads has no deformable res5; set the last value to False",
            )
        # As detectron2's, never dilated, and not frozen.
        res5 = resnet_of_config(cfg, out_features=["res5"], res5_dilation=1, freeze_at=0).res5
        refuse_partial_load(res5)
        return res5, res5[-1].out_channels
