"""A convolution that folds the FrozenBN after it into its weight, in training too."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass  # not frozen: torch.compile does not support frozen dataclasses
class ScaledConvolution:
    """A convolution with scaled weights; it has no tensors and is called with `x, weight, scale, bias`.

    Args:
        dtype: the dtype of the products and of the output.
        others: those of `torch.nn.functional.conv2d`.
    """

    dtype: torch.dtype
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """`scale * conv(x, weight) + bias`; weight is (C_out, C_in, k, k), scale and bias are (C_out,)."""
        folded = self.fold(weight, scale)
        return F.conv2d(
            x.to(self.dtype), folded, bias.to(self.dtype), self.stride, self.padding, self.dilation, self.groups
        )

    def fold(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The scaled weight, computed in the dtype of the weight and rounded once."""
        return (weight * scale[:, None, None, None]).to(self.dtype)

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x and weight, or None if not needed."""
        grad_x, grad_folded, _ = torch.ops.aten.convolution_backward(
            grad,
            x.to(self.dtype),
            self.fold(weight, scale),
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            (*needed, False),
        )
        return grad_x, grad_folded.to(weight.dtype).mul_(scale[:, None, None, None]) if needed[1] else None


class FoldingConv2d(Conv2d):
    """detectron2's convolution; in training its FrozenBN is folded into the weight if that is faster.

    With gradients, detectron2's FrozenBN is a multiplication and an addition, two passes over the map. Its scale and
    bias are constant, so the weight can be scaled instead. Without gradients, with other norms, and on maps smaller
    than the weight, the layer does what detectron2 does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        if not torch.jit.is_scripting() and self.folds(x):  # type: ignore[attr-defined]
            positions = x.shape[0] * (x.shape[2] // self.stride[0]) * (x.shape[3] // self.stride[1])
            if positions > self.weight[0].numel():
                convolution, *tensors = self.folded(x)
                # A compiler decides itself what to keep for the backward pass; a trace can only record the formula.
                if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
                    return convolution(*tensors)
                return _Folded.apply(convolution, *tensors)
        # As detectron2's forward, which TorchScript can't call from here.
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.norm is None else self.norm(x)

    @torch.jit.unused
    def folds(self, x: Tensor) -> bool:
        """Whether the norm is frozen and gradients are needed."""
        trained = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return trained and self.bias is None and isinstance(self.norm, FrozenBatchNorm2d)

    @torch.jit.unused
    def folded(self, x: Tensor) -> tuple[ScaledConvolution, Tensor, Tensor, Tensor, Tensor]:
        """The convolution with scaled weights, and its arguments."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        device = x.device.type
        cast = not x.is_meta and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if cast else x.dtype
        convolution = ScaledConvolution(dtype, self.stride, self.padding, self.dilation, self.groups)
        return convolution, x, self.weight, scale, bias


def fold_frozen_norms(block: nn.Module) -> None:
    """Turns detectron2's convolutions among the children of a block into :class:`FoldingConv2d`.

    Their class is changed in place, because new layers would have other initial weights.
    """
    for layer in block.children():
        if type(layer) is Conv2d and layer.activation is None:
            layer.__class__ = FoldingConv2d


class _Folded(torch.autograd.Function):
    """Recomputes the scaled weight in the backward pass, instead of keeping a second copy of all weights."""

    @staticmethod
    def forward(
        ctx: Any, convolution: ScaledConvolution, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.convolution = convolution
        ctx.save_for_backward(x, weight, scale)
        return convolution(x, weight, scale, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.convolution.backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[1:3])
        return None, *gradients, None, None
