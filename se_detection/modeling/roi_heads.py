"""The ROI heads of C4 detectors with SE in res5; detectron2's heads build res5 of plain blocks."""

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from ..errors import UserError
from .partial_load import refuse_partial_load
from .se_resnet import resnet_of_config


@ROI_HEADS_REGISTRY.register()
class SERes5ROIHeads(Res5ROIHeads):
    """detectron2's `Res5ROIHeads` with the SE blocks of `MODEL.SE` in res5."""

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
