"""A detector's backbone as an image classifier, with its pre-training loss."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock
from timm.data import Mixup
from timm.layers import DropPath
from torch import Tensor, nn

from ..checkpoint.assumptions import PLAIN_BUILDERS, SE_BUILDERS
from ..config.se_config import STAGES
from ..config.timm_config import TIMM_BUILDERS, has_timm_backbone
from ..errors import UserError
from ..modeling.blocks import SEResidualBlock


class Classifier(nn.Module):
    """Backbone, global average pool, linear layer.

    Args:
        backbone: has `res5` among its outputs.
        num_classes: number of outputs of the linear layer.
        pixel_mean, pixel_std: the detector's, for values in 0..255, in its channel order.
        bgr: whether that order is BGR.
        label_smoothing: 0 for none.
        mixup: mixes a batch of images and their labels; its label smoothing replaces `label_smoothing`.
        bf16: run the backbone under autocast to bfloat16.
        memory_format: of the images.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        bgr: bool = False,
        label_smoothing: float = 0.0,
        mixup: Mixup | None = None,
        bf16: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(backbone.output_shape()["res5"].channels, num_classes)
        # As in detectron2's ResNet and Goyal et al. (arXiv 1706.02677).
        nn.init.normal_(self.linear.weight, std=0.01)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.bgr, self.bf16, self.memory_format = bgr, bf16, memory_format
        self.label_smoothing, self.mixup = label_smoothing, mixup

    def forward(self, batch: list[dict[str, Any]]) -> Tensor | dict[str, Tensor]:
        """The loss in training, otherwise logits (N, classes); the batch has the items of :class:`ImageMapper`."""
        images = self.preprocess(batch)
        if not self.training:
            return self.logits(images)
        targets = torch.tensor([item["label"] for item in batch], device=images.device)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
            return {"loss_cls": F.cross_entropy(self.logits(images), targets)}
        return {"loss_cls": F.cross_entropy(self.logits(images), targets, label_smoothing=self.label_smoothing)}

    def preprocess(self, batch: list[dict[str, Any]]) -> Tensor:
        """A batch of images as the detector gets them: (N, 3, H, W), in its channel order, normalized."""
        images = torch.from_numpy(np.stack([item["image"] for item in batch]))
        images = images.to(self.pixel_mean.device, non_blocking=True).float()
        if self.bgr:
            images = images.flip(1)
        return ((images - self.pixel_mean) / self.pixel_std).contiguous(memory_format=self.memory_format)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(images)["res5"]
        return self.linear(features.float().mean(dim=(2, 3)))


def build_classifier(cfg: CfgNode, num_classes: int) -> Classifier:
    """A classifier with the backbone of a detector's config and the recipe in `PRETRAIN`.

    Raises:
        UserError: the backbone is not a ResNet, or can't be built.
    """
    recipe, smoothing = cfg.PRETRAIN, cfg.PRETRAIN.LABEL_SMOOTHING
    backbone = build_backbone(backbone_config(cfg))
    if not has_timm_backbone(cfg):
        add_stochastic_depth(backbone, recipe.STOCHASTIC_DEPTH)
    mixup = None
    if recipe.MIXUP or recipe.CUTMIX:
        mixup = Mixup(recipe.MIXUP, recipe.CUTMIX, label_smoothing=smoothing, num_classes=num_classes)
    return Classifier(
        backbone,
        num_classes,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        bgr=cfg.INPUT.FORMAT == "BGR",
        label_smoothing=smoothing,
        mixup=mixup,
        bf16=recipe.BF16,
        memory_format=torch.channels_last if cfg.SOLVER.CHANNELS_LAST else torch.contiguous_format,
    )


def backbone_config(cfg: CfgNode) -> CfgNode:
    """The config of only a detector's backbone, up to res5.

    Raises:
        UserError: it is neither a ResNet of detectron2 or this project nor a network of timm.
    """
    name = cfg.MODEL.BACKBONE.NAME
    builders = PLAIN_BUILDERS + SE_BUILDERS + TIMM_BUILDERS
    if name not in builders:
        choices = ", ".join(builders)
        raise UserError(
            "pretrain.backbone", f"MODEL.BACKBONE.NAME: {name!r} can't be pre-trained; choose from {choices}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SE.FPN = False
    if has_timm_backbone(cfg):
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.WEIGHTS = "build_timm_backbone", ""
        cfg.MODEL.TIMM.OUT_FEATURES, cfg.MODEL.TIMM.OUTPUT_STRIDE = ["res5"], 32
        # timm's own stochastic depth increases in the same way.
        cfg.MODEL.TIMM.DROP_PATH = cfg.PRETRAIN.STOCHASTIC_DEPTH if "PRETRAIN" in cfg else 0.0
        return cfg
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_backbone" if name in SE_BUILDERS else "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    # Dilation is for detection, and does not change the shapes of the weights.
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    return cfg


def add_stochastic_depth(backbone: nn.Module, probability: float) -> None:
    """Drops residual branches at random in training, separately for each image (Huang et al., arXiv 1603.09382).

    Args:
        backbone: a ResNet with plain or SE blocks.
        probability: for the last block; it increases linearly with the block's number.
    """
    blocks = [block for stage in STAGES for block in getattr(backbone, stage)]
    for number, block in enumerate(blocks, start=1):
        drop = DropPath(probability * number / len(blocks))
        # The last module of the branch: the gate or the last convolution. Hooks don't change the names of the weights.
        gated = isinstance(block, SEResidualBlock) and block.position == "standard"
        last = block.se.activation if gated else block.conv2 if isinstance(block, BasicBlock) else block.conv3
        last.register_forward_hook(lambda module, inputs, output, drop=drop: drop.train(module.training)(output))
