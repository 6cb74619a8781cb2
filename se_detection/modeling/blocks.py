"""detectron2's residual blocks with squeeze-and-excitation (the paper's Fig. 3 and Fig. 5)."""

from typing import Any, Final

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor

from ..config.se_config import SEConfig
from .ops.folding_conv import fold_frozen_norms
from .ops.residual_gate import residual_gate
from .squeeze_excitation import SqueezeExcitation


class SEResidualBlock(CNNBlockBase):
    """A residual block with SE (the paper's Fig. 5); subclasses give the residual branch, `residual(x)`.

    Args:
        se: the options of SE in this block. Its `stages` and `reduction_per_stage` are for whole backbones and are not
            read here.
        others: those of detectron2's block.
    """

    position: Final[str]

    def __init__(self, in_channels: int, out_channels: int, *, se: SEConfig, **block: Any) -> None:
        super().__init__(in_channels, out_channels, **block)
        channels = {"pre": in_channels, "3x3": self.conv2.out_channels}.get(se.position, out_channels)
        self.se = SqueezeExcitation.from_config(channels, se)
        self.position = se.position
        fold_frozen_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if self.position == "standard":
            residual = self.residual(x)
            gate = self.se.gate(residual)
            return residual_gate(residual, gate, shortcut)  # relu(gate * residual + shortcut)
        if self.position == "pre":
            return F.relu_(self.residual(self.se(x)).add_(shortcut))
        if self.position == "identity":
            return F.relu_(self.residual(x).add_(self.se(shortcut)))
        out = F.relu_(self.residual(x).add_(shortcut))  # 3x3: SE is part of the residual branch
        return self.se(out) if self.position == "post" else out


class SEBasicBlock(SEResidualBlock, BasicBlock):
    """The block of SE-ResNet-18/34: 3x3, 3x3, SE."""

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckResidual(SEResidualBlock):
    """1x1, 3x3, 1x1."""

    def conv3x3(self, x: Tensor) -> Tensor:
        return self.conv2(x)

    def residual(self, x: Tensor) -> Tensor:
        out = self.conv3x3(F.relu_(self.conv1(x)))
        if self.position == "3x3":
            out = self.se(out)
        return self.conv3(F.relu_(out))


class SEBottleneckBlock(BottleneckResidual, BottleneckBlock):
    """The block of SE-ResNet-50/101/152 and SE-ResNeXt: 1x1, 3x3, 1x1, SE."""


class HalvedBottleneckBlock(BottleneckBlock):
    """SENet-154's bottleneck without SE: its first 1x1 is half as wide, its projection may be 3x3 (paper's appendix).

    Args:
        projection_kernel: the kernel size of the shortcut's convolution; in the released model 1 in res2, else 3.
        others: those of `BottleneckBlock`; `bottleneck_channels` is the width of the 3x3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        projection_kernel: int,
        norm: str = "BN",
        **block: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, bottleneck_channels=bottleneck_channels, norm=norm, **block)
        halved = bottleneck_channels // 2
        replaced = {
            "conv1": _like(self.conv1, in_channels, halved, norm),
            "conv2": _like(self.conv2, halved, bottleneck_channels, norm),
        }
        if self.shortcut is not None:
            replaced["shortcut"] = _like(self.shortcut, in_channels, out_channels, norm, projection_kernel)
        for name, layer in replaced.items():
            self.add_module(name, layer)


class SENetBottleneckBlock(BottleneckResidual, HalvedBottleneckBlock):
    """The block of SENet-154: 1x1 of half the width, grouped 3x3, 1x1, SE."""


class SEDeformBottleneckBlock(BottleneckResidual, DeformBottleneckBlock):
    """A bottleneck with a deformable 3x3 convolution; needs detectron2's compiled operators."""

    def conv3x3(self, x: Tensor) -> Tensor:
        offset = self.conv2_offset(x)
        if self.deform_modulated:
            # A third of the channels each: x offsets, y offsets, mask.
            third = offset.shape[1] // 3
            return self.conv2(x, offset[:, : 2 * third], offset[:, 2 * third :].sigmoid())
        return self.conv2(x, offset)


def _like(conv: Conv2d, in_channels: int, out_channels: int, norm: str, kernel_size: int | None = None) -> Conv2d:
    """A convolution with the stride, dilation and groups of `conv`, but other widths, and perhaps another kernel."""
    size = kernel_size or conv.kernel_size[0]
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        stride=conv.stride,
        padding=conv.dilation[0] * (size // 2),
        dilation=conv.dilation,
        groups=conv.groups,
        bias=False,
        norm=get_norm(norm, out_channels),
    )
    c2_msra_fill(layer)
    return layer
