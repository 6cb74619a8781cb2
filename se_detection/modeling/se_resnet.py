"""SE-ResNet, SE-ResNeXt and SENet-154 backbones, alone and with FPN, and their builders in detectron2's registry."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock, ResNet
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
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
from .insert_se import add_se_to_fpn
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
        choices = ", ".join(map(str, BLOCKS_PER_STAGE))
        raise UserError("config.bad_value", f"MODEL.RESNETS.DEPTH: {depth} is not one of {choices}")
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
                raise UserError(
                    "config.bad_value",
                    f"MODEL.RESNETS.{key}: {value} is not supported with DEPTH {depth}; use {needed}",
                )
        if se.position == "3x3" and se.stages:
            raise UserError(
                "config.bad_value", f"MODEL.SE.POSITION: 3x3 needs bottleneck blocks, and DEPTH {depth} has none"
            )
    if se.stages and se.kind != "se":
        raise UserError(
            "config.bad_value",
            f"MODEL.SE.KIND: SE-ResNets have no blocks of the kind {se.kind}; use se, or a network of timm with "
            "MODEL.TIMM.INSERT_SE",
        )
    if any(deform_on_per_stage) and not _has_compiled_operators():
        raise UserError(
            "model.no_compiled_operators",
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable convolution needs detectron2's compiled operators, which "
            "are missing in this installation; build detectron2 from source, or set it to [False, False, False, False]",
        )

    block_class = BasicBlock if basic else HalvedBottleneckBlock if depth == 154 else BottleneckBlock
    channels = stem_channels
    bottleneck_channels = num_groups * width_per_group
    stages = []
    # detectron2's ResNet drops the stages behind the last map, but only after they were initialized.
    count = max((STAGES.index(name) + 1 for name in out_features if name in STAGES), default=0)
    every_stage = list(zip(STAGES, BLOCKS_PER_STAGE[depth], deform_on_per_stage, strict=True))
    for stage, num_blocks, deform in every_stage[:count]:
        # A dilated res5 keeps the resolution of res4, as in R-FCN and in detectron2's DC5.
        dilation = res5_dilation if stage == "res5" else 1
        stride = 1 if stage == "res2" or dilation == 2 else 2
        options: dict[str, Any] = {"in_channels": channels, "out_channels": out_channels, "norm": norm}
        if not basic:
            options |= {
                "bottleneck_channels": bottleneck_channels,
                "num_groups": num_groups,
                "stride_in_1x1": stride_in_1x1,
                "dilation": dilation,
            }
        if depth == 154:
            options["projection_kernel"] = 1 if stage == "res2" else 3
        if deform:
            options |= {"deform_modulated": deform_modulated, "deform_num_groups": deform_num_groups}
        kind = DeformBottleneckBlock if deform else block_class
        reduction = se.reduction_in(stage)
        if reduction is not None:
            kind = SE_BLOCK[kind]
            options["se"] = replace(se, reduction=reduction, reduction_per_stage=())
        stages.append(
            ResNet.make_stage(kind, num_blocks, stride_per_block=[stride] + [1] * (num_blocks - 1), **options)
        )
        channels, out_channels, bottleneck_channels = out_channels, 2 * out_channels, 2 * bottleneck_channels

    stem_class = {"basic": BasicStem, "caffe": CaffeStem, "deep": DeepStem}[stem]
    return ResNet(
        stem_class(in_channels=in_channels, out_channels=stem_channels, norm=norm),
        stages,
        num_classes=num_classes,
        out_features=list(out_features),
        freeze_at=freeze_at,
    )


def _has_compiled_operators() -> bool:
    try:
        # It may be there and fail: the pinned wheel has a file for Python 3.10 and an older torch.
        import detectron2._C  # noqa: F401
    except ImportError:
        return False
    return True


def resnet_of_config(cfg: CfgNode, **changes: Any) -> ResNet:
    """The ResNet that `MODEL.RESNETS` and `MODEL.SE` describe, with other arguments of :func:`make_se_resnet`."""
    resnets = cfg.MODEL.RESNETS
    same_names = "norm out_features num_groups width_per_group stride_in_1x1 res5_dilation deform_on_per_stage"
    options = {name: resnets[name.upper()] for name in same_names.split()} | {
        "se": SEConfig.from_cfg(cfg),
        "stem": resnets.STEM_TYPE,
        "stem_channels": resnets.STEM_OUT_CHANNELS,
        "res2_channels": resnets.RES2_OUT_CHANNELS,
        "deform_modulated": resnets.DEFORM_MODULATED,
        "deform_num_groups": resnets.DEFORM_NUM_GROUPS,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
    }
    return make_se_resnet(resnets.DEPTH, **options | changes)


@BACKBONE_REGISTRY.register()
def build_se_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The backbone that `MODEL.RESNETS` and `MODEL.SE` describe, for C4 and DC5 detectors.

    Raises:
        UserError: a value is not supported, or the res5 of a C4 detector would have no SE.
    """
    backbone = _bottom_up(cfg, input_shape)
    check_no_fpn(cfg)
    return ignoring_padding(cfg, backbone)


@BACKBONE_REGISTRY.register()
def build_se_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """SE-ResNet with FPN: p2 to p5, and p6 by subsampling (Faster, Mask and Cascade R-CNN)."""
    return with_fpn(cfg, _bottom_up(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_se_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """SE-ResNet with RetinaNet's FPN: p3 to p5, and p6 and p7 by convolution from res5."""
    backbone = _bottom_up(cfg, input_shape)
    return with_fpn(cfg, backbone, LastLevelP6P7(backbone.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    if "SE" not in cfg.MODEL:
        raise UserError(
            "config.no_se_keys",
            "the config has no MODEL.SE: import se_detection before get_cfg(), or call add_se_config(cfg)",
        )
    # In a C4 detector res5 is part of the ROI heads, and detectron2's heads build it of plain blocks.
    plain_res5 = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"
    if plain_res5 and "res5" not in cfg.MODEL.RESNETS.OUT_FEATURES and "res5" in cfg.MODEL.SE.STAGES:
        raise UserError(
            "model.plain_res5",
            "MODEL.ROI_HEADS.NAME: Res5ROIHeads has a res5 without SE; set it to SERes5ROIHeads, "
            "or take res5 out of MODEL.SE.STAGES",
        )
    check_roi_heads(cfg)
    backbone = resnet_of_config(cfg, in_channels=input_shape.channels)
    refuse_partial_load(backbone)
    return backbone


def check_no_fpn(cfg: CfgNode) -> None:
    """Raises a :class:`UserError` if `MODEL.SE.FPN` is set for a backbone without FPN."""
    if cfg.MODEL.SE.FPN:
        raise UserError(
            "model.no_fpn",
            f"MODEL.SE.FPN: {cfg.MODEL.BACKBONE.NAME} has no FPN; set it to False, or use a backbone with FPN",
        )


def check_roi_heads(cfg: CfgNode) -> None:
    """Raises a :class:`UserError` if `MODEL.SE.ROI` is set for heads that would ignore it."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if cfg.MODEL.SE.ROI and not (name in ROI_HEADS_REGISTRY and hasattr(ROI_HEADS_REGISTRY.get(name), "can_have_se")):
        raise UserError(
            "model.plain_roi_heads",
            f"MODEL.SE.ROI: {name} (MODEL.ROI_HEADS.NAME) has no SE; use SEStandardROIHeads, SECascadeROIHeads or "
            "SERes5ROIHeads, or set it to False in a detector without RoI heads",
        )


def with_fpn(cfg: CfgNode, backbone: Backbone, top_block: nn.Module) -> FPN:
    """The FPN that `MODEL.FPN` describes, on a backbone, with SE if `MODEL.SE.FPN` is set."""
    check_roi_heads(cfg)
    fpn = FPN(
        bottom_up=backbone,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    # FPN's own is only the stride of its last level.
    fpn._size_divisibility = max(fpn.size_divisibility, backbone.size_divisibility)
    if cfg.MODEL.SE.FPN:
        add_se_to_fpn(fpn, SEConfig.from_cfg(cfg))
    return ignoring_padding(cfg, fpn)


def ignoring_padding(cfg: CfgNode, backbone: Backbone) -> Backbone:
    """Makes a backbone ignore padding if `MODEL.SE.IGNORE_PADDING` is set."""
    if not cfg.MODEL.SE.IGNORE_PADDING:
        return backbone
    if not any(cfg.MODEL.PIXEL_MEAN):
        logger.warning("MODEL.SE.IGNORE_PADDING: MODEL.PIXEL_MEAN is 0, so black borders count as padding too")
    return ignore_padding(backbone)
