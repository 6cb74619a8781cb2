"""Convolutions that hold the norm after them, and do the ReLU and a sum in the same pass where PyTorch can."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.folding_conv import FoldingConv2d
from ..ops.residual_gate import residual_sigmoid_gate


class FoldedConv2d(Conv2d):
    """detectron2's convolution with a bias instead of a norm; `activation` is None or `F.relu`.

    On the CPU it is oneDNN's operator with the ReLU inside, in which also ends what `torch.compile` makes of the two.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        if not self.has_onednn(x):
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return x if self.activation is None else F.relu_(x)
        attribute = "none" if self.activation is None else "relu"
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, attribute, [], ""
        )

    def add_to(self, total: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """`relu(total + gate * conv(x))`, where possible in the place of `total`.

        Args:
            total: (N, C_out, H, W), of no use afterwards.
            x: (N, C_in, H, W)
            gate: (N, C_out, 1, 1); 1 everywhere unless given.

        Returns:
            (N, C_out, H, W)
        """
        if gate is None:
            if self.has_onednn(x):
                return self._add_to(total, x, self.weight, self.bias)
            return total.add_(self(x)).relu_()
        # A gate that is known beforehand scales the weights, where these are fewer than the values of a map.
        if not self.has_onednn(x) or self.weight.numel() > total[0].numel():
            return residual_sigmoid_gate(self(x), gate, total)
        for own_total, own_x, own_gate in zip(total.split(1), x.split(1), gate, strict=True):
            self._add_to(own_total, own_x, self.weight * own_gate[..., None], self.bias * own_gate.flatten())
        return total

    def _add_to(self, total: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, weight, bias, *options, "add", 1.0, "relu", [], ""
        )

    def has_onednn(self, x: Tensor) -> bool:
        """Whether oneDNN's operators take `x`; what is compiled or traced is left to the compiler's own fusing."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return False
        half = x.dtype == torch.bfloat16
        return bool(
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and (half or x.dtype == torch.float32)
            and x.numel() > 0
            # detectron2's convolution may be given "same", which the operators don't know.
            and isinstance(self.padding, tuple)
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            # Under autocast a float32 convolution is to be computed in half precision.
            and (torch.ops.mkldnn._is_mkldnn_bf16_supported() if half else not torch.is_autocast_enabled("cpu"))
        )


def fold_norms(model: nn.Module) -> None:
    """Makes, in place, a :class:`FoldedConv2d` of every detectron2 `Conv2d` whose norm has fixed statistics, or none.

    In evaluation BN and FrozenBN are a scale and a shift of each channel. They are computed in float64, so that one
    rounding is all that changes. Other norms (GN, LN, BN without running statistics) stay as they are.
    """
    conv: Any
    for conv in model.modules():
        known = type(conv) in (Conv2d, FoldingConv2d) and (conv.activation is None or _is_relu(conv.activation))
        if not known or not _is_fixed(conv.norm):
            continue
        scale, shift = _scale_and_shift(conv.norm, conv.weight.new_ones(conv.out_channels, dtype=torch.float64))
        if conv.bias is not None:
            shift = shift + conv.bias.detach().double() * scale
        weight = conv.weight.detach().double() * scale[:, None, None, None]
        conv.bias = nn.Parameter(shift.to(conv.weight), requires_grad=False)
        conv.weight = nn.Parameter(weight.to(conv.weight), requires_grad=False)
        conv.norm = None
        # Others hold the module itself (FPN does, in lists), so that it can't be replaced by another.
        conv.__class__ = FoldedConv2d


def _is_relu(activation: object) -> bool:
    return activation in (F.relu, F.relu_) or isinstance(activation, nn.ReLU)


def _is_fixed(norm: nn.Module | None) -> bool:
    if isinstance(norm, _BatchNorm):
        return norm.running_mean is not None
    return norm is None or isinstance(norm, FrozenBatchNorm2d)


def _scale_and_shift(norm: Any, ones: Tensor) -> tuple[Tensor, Tensor]:
    if norm is None:
        return ones, torch.zeros_like(ones)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()
