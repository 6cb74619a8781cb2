"""detectron2's residual blocks with squeeze-and-excitation (the paper's Fig. 3 and Fig. 5)."""

from typing import Any, Final

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from .ops.folding_conv import FoldingConv2d, fold_frozen_norms
from .ops.residual_gate import residual_gate, residual_sigmoid_gate
from .squeeze_excitation import SqueezeExcitation


class SEResidualBlock(CNNBlockBase):
    """Where SE sits in a residual block (the paper's Fig. 5); subclasses give the residual branch.

    Args (keywords, taken by every SE block):
        se: the options of :class:`SqueezeExcitation`: `reduction`, `squeeze`, `gate`, ...
        position: `standard` (on the residual, before the sum), `pre` (on the input of the residual branch), `post`
            (after sum and ReLU), `identity` (on the shortcut) or `3x3` (inside a bottleneck, after the 3x3).
        others: those of detectron2's block.
    """

    position: Final[str]
    sigmoid_gate: Final[bool]

    def __init__(self, in_channels: int, out_channels: int, *, se: dict[str, Any], position: str, **block: Any) -> None:
        super().__init__(in_channels, out_channels, **block)
        gated = {"pre": in_channels, "3x3": self.conv2.out_channels}.get(position, out_channels)
        self.se = SqueezeExcitation(gated, **se)
        self.position = position
        self.sigmoid_gate = isinstance(self.se.activation, nn.Sigmoid) and not isinstance(self.se.squeeze, nn.Identity)
        fold_frozen_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(x)
        if self.position == "identity":
            shortcut = self.se(shortcut)
        if self.position == "pre":
            x = self.se(x)
        residual = self.residual(x)
        if self.position == "standard":
            gate = self.se.gate(residual)
            if not torch.jit.is_scripting() and self.sigmoid_gate:  # type: ignore[attr-defined]
                return residual_sigmoid_gate(residual, gate, shortcut, *self.projection(x))
            return residual_gate(residual, gate, shortcut)
        residual += shortcut
        out = F.relu_(residual)
        if self.position == "post":
            out = self.se(out)
        return out

    @torch.jit.unused
    def projection(self, x: Tensor) -> tuple[Any, ...]:
        """How to compute a projected shortcut again rather than keep it, where that is a frozen 1x1 convolution."""
        projection = self.shortcut
        if not isinstance(projection, FoldingConv2d) or projection.kernel_size != (1, 1) or not projection.folds(x):
            return ()
        again, *sources = projection.folded(x)
        return again, tuple(sources)


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
    """SENet-154's bottleneck without its SE: a first 1x1 half as wide, and a wider projection (the paper's appendix).

    Args:
        projection_kernel: of the shortcut's convolution; 3 in the released model, but for res2, where it is 1.
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
    """The bottleneck whose 3x3 convolution is deformable; needs detectron2's compiled operators."""

    def conv3x3(self, x: Tensor) -> Tensor:
        offset = self.conv2_offset(x)
        if self.deform_modulated:
            # The layer's channels are the x offsets, the y offsets and the mask, a third each.
            third = offset.shape[1] // 3
            return self.conv2(x, offset[:, : 2 * third], offset[:, 2 * third :].sigmoid())
        return self.conv2(x, offset)


def _like(conv: Conv2d, in_channels: int, out_channels: int, norm: str, kernel_size: int | None = None) -> Conv2d:
    """A convolution with another's stride, dilation and groups, and with other widths or another kernel."""
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
