"""SE-ResNet, SE-ResNeXt and SENet-154 backbones, alone and with FPN, and their builders in detectron2's registry."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock, ResNet
from torch import nn

from ..config.se_config import STAGES, STEMS, SEConfig, check_choice
from ..errors import UserError
from .blocks import (
    HalvedBottleneckBlock,
    SEBasicBlock,
    SEBottleneckBlock,
    SEDeformBottleneckBlock,
    SENetBottleneckBlock,
)
from .padding import ignore_padding
from .partial_load import refuse_partial_load
from .stems import CaffeStem, DeepStem

logger = logging.getLogger(__name__)

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    154: (3, 8, 36, 3),  # SENet-154, whose bottlenecks differ
}
SE_BLOCK: dict[type[CNNBlockBase], type[CNNBlockBase]] = {
    BasicBlock: SEBasicBlock,
    BottleneckBlock: SEBottleneckBlock,
    DeformBottleneckBlock: SEDeformBottleneckBlock,
    HalvedBottleneckBlock: SENetBottleneckBlock,
}


def make_stage(
    stage: str,
    depth: int,
    *,
    se: SEConfig,
    stride: int,
    in_channels: int,
    out_channels: int,
    bottleneck_channels: int,
    norm: str,
    num_groups: int,
    stride_in_1x1: bool,
    dilation: int = 1,
    deform: dict[str, Any] | None = None,
) -> list[CNNBlockBase]:
    """The blocks of one stage, with SE if `se.stages` has the stage.

    Args:
        stage: `res2` to `res5`.
        depth: the depth of the backbone, which determines the number and the kind of the blocks.
        stride: the stride of the first block.
        bottleneck_channels: the width of the 3x3 convolutions. Basic blocks ignore it, `num_groups`, `stride_in_1x1`
            and `dilation`.
        deform: the options of detectron2's deformable block; None for ordinary 3x3 convolutions.
        others: those of detectron2's blocks.

    Raises:
        UserError: the reduction ratio is too large for the width of the stage.
    """
    num_blocks = BLOCKS_PER_STAGE[depth][STAGES.index(stage)]
    options: dict[str, Any] = {"in_channels": in_channels, "out_channels": out_channels, "norm": norm}
    block_class: type[CNNBlockBase] = BasicBlock
    if depth >= 50:
        block_class = BottleneckBlock
        options |= {
            "bottleneck_channels": bottleneck_channels,
            "num_groups": num_groups,
            "stride_in_1x1": stride_in_1x1,
            "dilation": dilation,
        }
    if depth == 154:
        block_class = HalvedBottleneckBlock
        options["projection_kernel"] = 1 if stage == "res2" else 3
    if deform is not None:
        block_class = DeformBottleneckBlock
        options |= deform
    reduction = se.reduction_in(stage)
    if reduction is not None:
        block_class = SE_BLOCK[block_class]
        options["se"] = replace(se, reduction=reduction, reduction_per_stage=())
    strides = [stride] + [1] * (num_blocks - 1)
    try:
        return ResNet.make_stage(block_class, num_blocks, stride_per_block=strides, **options)
    except ValueError as error:
        raise UserError(f"MODEL.SE in {stage}: {error}") from error


def make_se_resnet(
    depth: int,
    *,
    se: SEConfig,
    norm: str,
    out_features: Sequence[str],
    stem: str = "basic",
    in_channels: int = 3,
    stem_channels: int = 64,
    res2_channels: int | None = None,
    num_groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = False,
    res5_dilation: int = 1,
    deform_on_per_stage: Sequence[bool] = (False,) * 4,
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
    num_classes: int | None = None,
    freeze_at: int = 0,
) -> ResNet:
    """A detectron2 `ResNet` of plain or SE blocks, with the options of detectron2's `build_resnet_backbone`.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks), or 154 (SENet-154's bottlenecks).
        se: the SE blocks; `SEConfig(stages=())` gives a plain ResNet.
        stem: `basic` (detectron2's), `caffe` (ceil-mode pool) or `deep` (SENet-154's).
        res2_channels: the output channels of res2; by default 64 for basic blocks and 256 for bottlenecks.
        num_classes: adds a classifier; its logits are the feature `linear`.
        freeze_at: how many stages are frozen, with the stem as the first (`MODEL.BACKBONE.FREEZE_AT`).
        others: the keys of `MODEL.RESNETS` of the same name.

    Raises:
        UserError: a ResNet cannot have these values, or the installed detectron2 cannot build them.
    """
    if depth not in BLOCKS_PER_STAGE:
        raise UserError(f"MODEL.RESNETS.DEPTH: {depth} is not one of {', '.join(map(str, BLOCKS_PER_STAGE))}")
    if res5_dilation not in (1, 2):
        raise UserError(f"MODEL.RESNETS.RES5_DILATION: {res5_dilation} is not 1 or 2")
    check_choice("MODEL.RESNETS.STEM_TYPE", stem, STEMS)
    basic = depth < 50
    out_channels = res2_channels or (64 if basic else 256)
    if basic:
        for key, value, needed in (
            ("RES2_OUT_CHANNELS", out_channels, 64),
            ("RES5_DILATION", res5_dilation, 1),
            ("NUM_GROUPS", num_groups, 1),
            ("DEFORM_ON_PER_STAGE", list(deform_on_per_stage), [False] * 4),
        ):
            if value != needed:
                raise UserError(f"MODEL.RESNETS.{key}: {value} is not supported with DEPTH {depth}; use {needed}")
        if se.position == "3x3" and se.stages:
            raise UserError(f"MODEL.SE.POSITION: 3x3 needs bottleneck blocks, and DEPTH {depth} has none")
    if any(deform_on_per_stage) and depth == 154:
        raise UserError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: SENet-154 (DEPTH 154) has no deformable blocks")
    if any(deform_on_per_stage) and importlib.util.find_spec("detectron2._C") is None:
        raise UserError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable convolution needs detectron2's compiled operators, which "
            "are missing in this installation; build detectron2 from source, or set it to [False, False, False, False]"
        )

    current = stem_channels
    bottleneck_channels = num_groups * width_per_group
    deform_options = {"deform_modulated": deform_modulated, "deform_num_groups": deform_num_groups}
    stages = []
    for stage, deform in zip(STAGES, deform_on_per_stage, strict=True):
        # A dilated res5 keeps the resolution of res4, as in R-FCN and in detectron2's DC5.
        dilation = res5_dilation if stage == "res5" else 1
        blocks = make_stage(
            stage,
            depth,
            se=se,
            stride=1 if stage == "res2" or dilation == 2 else 2,
            in_channels=current,
            out_channels=out_channels,
            bottleneck_channels=bottleneck_channels,
            norm=norm,
            num_groups=num_groups,
            stride_in_1x1=stride_in_1x1,
            dilation=dilation,
            deform=deform_options if deform else None,
        )
        stages.append(blocks)
        current, out_channels, bottleneck_channels = out_channels, 2 * out_channels, 2 * bottleneck_channels

    stem_class = {"basic": BasicStem, "caffe": CaffeStem, "deep": DeepStem}[stem]
    return ResNet(
        stem_class(in_channels=in_channels, out_channels=stem_channels, norm=norm),
        stages,
        num_classes=num_classes,
        out_features=list(out_features),
        freeze_at=freeze_at,
    )


@BACKBONE_REGISTRY.register()
def build_se_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The backbone that `MODEL.RESNETS` and `MODEL.SE` describe, for C4 and DC5 detectors.

    Raises:
        UserError: a value is not supported, or the res5 of a C4 detector would have no SE.
    """
    backbone = _backbone(cfg, input_shape)
    _ignore_padding_if_asked(cfg, backbone)
    return backbone


def _backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    if "SE" not in cfg.MODEL:
        raise UserError("the config has no MODEL.SE: import se_detection before get_cfg(), or call add_se_config(cfg)")
    se = SEConfig.from_cfg(cfg)
    resnets = cfg.MODEL.RESNETS
    # In a C4 detector res5 is part of the ROI heads, and detectron2's heads build it of plain blocks.
    plain_res5 = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"
    if plain_res5 and "res5" not in resnets.OUT_FEATURES and "res5" in se.stages:
        raise UserError(
            "MODEL.ROI_HEADS.NAME: Res5ROIHeads has a res5 without SE; set it to SERes5ROIHeads, "
            "or take res5 out of MODEL.SE.STAGES"
        )
    backbone = make_se_resnet(
        resnets.DEPTH,
        se=se,
        stem=cfg.MODEL.RESNETS.STEM_TYPE,
        norm=resnets.NORM,
        out_features=resnets.OUT_FEATURES,
        in_channels=input_shape.channels,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        res5_dilation=resnets.RES5_DILATION,
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_num_groups=resnets.DEFORM_NUM_GROUPS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    refuse_partial_load(backbone)
    return backbone


@BACKBONE_REGISTRY.register()
def build_se_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """SE-ResNet with FPN: p2 to p5, and p6 by subsampling (Faster, Mask and Cascade R-CNN)."""
    return _with_fpn(cfg, _backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_se_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """SE-ResNet with RetinaNet's FPN: p3 to p5, and p6 and p7 by convolution from res5."""
    backbone = _backbone(cfg, input_shape)
    return _with_fpn(cfg, backbone, LastLevelP6P7(backbone.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _with_fpn(cfg: CfgNode, backbone: Backbone, top_block: nn.Module) -> FPN:
    fpn = FPN(
        bottom_up=backbone,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    _ignore_padding_if_asked(cfg, fpn)
    return fpn


def _ignore_padding_if_asked(cfg: CfgNode, backbone: Backbone) -> None:
    if not cfg.MODEL.SE.IGNORE_PADDING:
        return
    if not any(cfg.MODEL.PIXEL_MEAN):
        logger.warning("MODEL.SE.IGNORE_PADDING: MODEL.PIXEL_MEAN is 0, so black borders count as padding too")
    ignore_padding(backbone)
