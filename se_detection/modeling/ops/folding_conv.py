"""A convolution that folds the FrozenBN after it into its weight, in training too."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from . import runs_eagerly

# Stride, padding, dilation and groups.
Options = tuple[Any, ...]


class FoldingConv2d(Conv2d):
    """detectron2's convolution; in training its FrozenBN is folded into the weight if that is faster.

    With gradients, detectron2's FrozenBN is a multiplication and an addition, two passes over the map. Its scale and
    bias are constant, so the weight can be scaled instead. Without gradients, with other norms, and on maps smaller
    than the weight of a 3x3, the layer does what detectron2 does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        if not torch.jit.is_scripting() and self.folds(x):  # type: ignore[attr-defined]
            return self.folded(x)
        # As detectron2's forward, which TorchScript can't call from here.
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.norm is None else self.norm(x)

    @torch.jit.unused
    def folds(self, x: Tensor) -> bool:
        """Whether the norm is frozen, gradients are needed, and the map is larger than the weight."""
        frozen = self.bias is None and isinstance(self.norm, FrozenBatchNorm2d)
        if not (frozen and torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)):
            return False
        positions = x.shape[0] * (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])
        # A folded 1x1 convolution can be computed again, see `recomputation`.
        return self.kernel_size == (1, 1) or bool(positions > self.weight[0].numel())

    @torch.jit.unused
    def folded(self, x: Tensor) -> Tensor:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        return scaled_conv2d(x, self.weight, scale, bias, (self.stride, self.padding, self.dilation, self.groups))


def fold_frozen_norms(block: nn.Module) -> None:
    """Turns detectron2's convolutions among the children of a block into :class:`FoldingConv2d`.

    Their class is changed in place, because new layers would have other initial weights.
    """
    for layer in block.children():
        if type(layer) is Conv2d and layer.activation is None:
            layer.__class__ = FoldingConv2d


def scaled_conv2d(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, options: Options) -> Tensor:
    """`scale * conv(x, weight) + bias`, in the dtype of `x` or of autocast.

    The scaled weight is computed again in the backward pass, instead of keeping a second copy of all weights. There
    are no gradients of `scale` and `bias`.

    Args:
        x: (N, C_in, H, W)
        weight: (C_out, C_in / groups, k, k)
        scale: (C_out,)
        bias: (C_out,)
        options: stride, padding, dilation and groups, as in `torch.nn.functional.conv2d`.

    Returns:
        (N, C_out, H', W')
    """
    operation: Callable[..., Tensor] = _ScaledConv2d.apply if runs_eagerly() else formula
    return operation(x, weight, scale, bias, options)


def formula(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, options: Options) -> Tensor:
    """The operation in PyTorch."""
    folded = weight * scale[:, None, None, None]
    return F.conv2d(x, folded.to(x.dtype), bias.to(x.dtype), *options)


class _ScaledConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, options: Options) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.options = options
        # For `recomputation`. The map must not be kept by it.
        ctx.source, ctx.parameters = weakref.ref(x), (weight, scale, bias)
        return formula(x, weight, scale, bias, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        folded = (weight * scale[:, None, None, None]).to(grad.dtype)
        needed = ctx.needs_input_grad[:2]
        grad_x, grad_folded, _ = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), folded, None, stride, padding, dilation, False, (0, 0), groups, (*needed, False)
        )
        grad_weight = grad_folded.to(weight.dtype).mul_(scale[:, None, None, None]) if needed[1] else None
        return grad_x, grad_weight, None, None, None


def recomputation(x: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]] | None:
    """How to compute a tensor again without gradients, if it is the output of a folded 1x1 convolution.

    Returns:
        A function and its arguments, which the convolution keeps anyway, except for scale and bias.
    """
    node: Any = x.grad_fn
    source = getattr(node, "source", lambda: None)()
    # Changed in place without gradients, a tensor has the same node and another version.
    if source is None or x._version > 0 or node.parameters[0].shape[2:] != (1, 1):
        return None
    return partial(formula, options=node.options), (source, *node.parameters)
