"""A detector's backbone with a pooled linear classifier on it, and the losses that it is pre-trained with."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock
from timm.data import Mixup
from timm.layers import DropPath
from torch import Tensor, nn

from ..checkpoint.assumptions import PLAIN_BUILDERS, SE_BUILDERS
from ..config.se_config import STAGES
from ..errors import UserError
from ..modeling.blocks import SEResidualBlock


class Classifier(nn.Module):
    """Backbone, global average, linear layer.

    Args:
        backbone: gives `res5`.
        num_classes: of the linear layer.
        pixel_mean, pixel_std, channel_order: of the detector, in 0..255.
        label_smoothing, mixup, cutmix: 0 for none; of the latter two the alpha, one of them at random if both.
        stochastic_depth: the probability with which the last block is left out; it rises linearly from 0.
        bf16: whether the backbone computes in bfloat16 where autocast has it.
        channels_last: the order of the images in memory.
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
        channel_order: str,
        label_smoothing: float,
        mixup: float,
        cutmix: float,
        stochastic_depth: float,
        bf16: bool,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(backbone.output_shape()["res5"].channels, num_classes)
        # As detectron2's ResNet and Goyal et al. (arXiv 1706.02677) begin it.
        nn.init.normal_(self.linear.weight, std=0.01)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.bgr = channel_order == "BGR"
        self.label_smoothing = label_smoothing
        self.mixup = None
        if mixup or cutmix:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.bf16 = bf16
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        add_stochastic_depth(backbone, stochastic_depth)

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "Classifier":
        """The backbone of a detector's config with a class for each of the training data's.

        Raises:
            UserError: the backbone is no ResNet, or can't be built.
        """
        recipe = cfg.PRETRAIN
        return cls(
            build_backbone(backbone_config(cfg)),
            len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            channel_order=cfg.INPUT.FORMAT,
            label_smoothing=recipe.LABEL_SMOOTHING,
            mixup=recipe.MIXUP,
            cutmix=recipe.CUTMIX,
            stochastic_depth=recipe.STOCHASTIC_DEPTH,
            bf16=recipe.BF16,
            channels_last=cfg.SOLVER.CHANNELS_LAST,
        )

    def forward(self, batch: list[dict[str, Any]]) -> Tensor | dict[str, Tensor]:
        """Takes what :class:`ImageMapper` gives: in training to the loss, otherwise to logits (N, classes)."""
        images = self.preprocess(batch)
        if not self.training:
            return self.logits(images)
        targets = torch.tensor([item["label"] for item in batch], device=images.device)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
            return {"loss_cls": F.cross_entropy(self.logits(images), targets)}
        return {"loss_cls": F.cross_entropy(self.logits(images), targets, label_smoothing=self.label_smoothing)}

    def preprocess(self, batch: list[dict[str, Any]]) -> Tensor:
        """Images as the detector sees them: (N, 3, H, W), in its channel order, normalised."""
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


def backbone_config(cfg: CfgNode) -> CfgNode:
    """The config of a detector's backbone alone, as far as res5.

    Raises:
        UserError: it is no ResNet of detectron2's or of this project.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in PLAIN_BUILDERS + SE_BUILDERS:
        choices = ", ".join(PLAIN_BUILDERS + SE_BUILDERS)
        raise UserError(f"MODEL.BACKBONE.NAME: {name!r} can't be pre-trained; choose from {choices}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_backbone" if name in SE_BUILDERS else "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    # A dilated res5 is for detection; its weights are those of the other.
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    return cfg


def add_stochastic_depth(backbone: nn.Module, probability: float) -> None:
    """Leaves residual branches out at random in training (Huang et al., arXiv 1603.09382), each image's by itself.

    Args:
        backbone: detectron2's ResNet, of plain or SE blocks.
        probability: of the last block; it rises linearly from 0 before the first.
    """
    blocks = [block for stage in STAGES for block in getattr(backbone, stage)]
    for number, block in enumerate(blocks, start=1):
        drop = DropPath(probability * number / len(blocks))
        # The branch's end: its gate where that comes last, or else its last convolution. Hooks leave names as they are.
        gated = isinstance(block, SEResidualBlock) and block.position == "standard"
        last = block.se.activation if gated else block.conv2 if isinstance(block, BasicBlock) else block.conv3
        last.register_forward_hook(lambda module, inputs, output, drop=drop: drop.train(module.training)(output))
