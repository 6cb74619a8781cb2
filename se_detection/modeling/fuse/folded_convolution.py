"""Folds norms with fixed statistics into the convolutions before them."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops.folded_conv import FoldedConv2d
from ..ops.folding_conv import FoldingConv2d


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
