"""Convolutions with a folded norm, which compute the ReLU and a sum in the same pass if PyTorch supports it."""

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

    On the CPU it calls oneDNN's operator that includes the ReLU, as `torch.compile` does.
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
        """`relu(total + gate * conv(x))`, written into `total` if possible.

        Args:
            total: (N, C_out, H, W); its content is undefined afterwards.
            x: (N, C_in, H, W)
            gate: (N, C_out, 1, 1); by default 1.

        Returns:
            (N, C_out, H, W)
        """
        if gate is None:
            if self.has_onednn(x):
                return self._add_to(total, x, self.weight, self.bias)
            return total.add_(self(x)).relu_()
        # The gate scales the weights, if there are fewer weights than values in a map.
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
        """Whether oneDNN's operators support `x`; False under a compiler, which fuses the layers itself."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return False
        half = x.dtype == torch.bfloat16
        return bool(
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and (half or x.dtype == torch.float32)
            and x.numel() > 0
            # detectron2's convolution accepts "same", which the operators do not.
            and isinstance(self.padding, tuple)
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            # Under autocast, a float32 convolution must be computed in half precision.
            and (torch.ops.mkldnn._is_mkldnn_bf16_supported() if half else not torch.is_autocast_enabled("cpu"))
        )


def fold_norms(model: nn.Module) -> None:
    """Turns every detectron2 `Conv2d` with fixed statistics or without a norm into a :class:`FoldedConv2d`, in place.

    In evaluation, BN and FrozenBN are a scale and a shift of each channel. They are computed in float64, so that the
    weights are rounded only once. Other norms (GN, LN, BN without running statistics) are not changed.
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
        # In place, because other objects refer to the module (FPN does, in lists).
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
