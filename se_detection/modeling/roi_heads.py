"""The ROI heads of C4 detectors with SE in res5; detectron2's heads build res5 of plain blocks."""

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from ..config.se_config import SEConfig
from ..errors import UserError
from .partial_load import refuse_partial_load
from .se_resnet import make_stage


@ROI_HEADS_REGISTRY.register()
class SERes5ROIHeads(Res5ROIHeads):
    """detectron2's `Res5ROIHeads` with the SE blocks of `MODEL.SE` in res5."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        resnets = cfg.MODEL.RESNETS
        if resnets.DEFORM_ON_PER_STAGE[-1]:
            raise UserError(
                "MODEL.RESNETS.DEFORM_ON_PER_STAGE: SERes5ROIHeads has no deformable res5; set the last value to False"
            )
        channels = 8 * resnets.RES2_OUT_CHANNELS
        blocks = make_stage(
            "res5",
            resnets.DEPTH,
            se=SEConfig.from_cfg(cfg),
            stride=2,
            in_channels=channels // 2,
            out_channels=channels,
            bottleneck_channels=8 * resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP,
            norm=resnets.NORM,
            num_groups=resnets.NUM_GROUPS,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
        )
        res5 = nn.Sequential(*blocks)
        refuse_partial_load(res5)
        return res5, channels
