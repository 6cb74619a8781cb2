"""The operation that SE adds to a ResNet: scale the residual by the gate, add the shortcut, ReLU."""

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Shortcut = Callable[..., Tensor]

# The gradient is divided by the gate, which is at least this. A smaller sigmoid has a derivative as small.
SMALLEST = 1e-6
# CUDA's limit for a grid axis, here of images, or of regions in a C4 head.
MOST_IMAGES = 65535

logger = logging.getLogger(__name__)


def residual_gate(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    """`relu(gate * residual + shortcut)`, the `Axpy` and ReLU of the released models.

    Multiplication and addition are one pass over memory. As two operations they are two passes, which is most of the
    time that SE adds to a ResNet.

    Args:
        residual: (N, C, H, W), the output of the residual branch.
        gate: (N, C, 1, 1), or (N, C, H, W) with the squeeze `none`.
        shortcut: (N, C, H, W).

    Returns:
        (N, C, H, W)
    """
    return F.relu_(torch.addcmul(shortcut, residual, gate))


def residual_sigmoid_gate(
    residual: Tensor, gate: Tensor, shortcut: Tensor, again: Shortcut | None = None, sources: tuple[Tensor, ...] = ()
) -> Tensor:
    """:func:`residual_gate` for sigmoid gates; in float32 it keeps no more for the backward pass than a plain block.

    The gradient of the gate is the sum over positions of `d * residual`, where `d` is the gradient before the ReLU. `d`
    is 0 where the output is 0; elsewhere the residual is `(out - shortcut) / gate`. The output and the shortcut, which
    plain blocks keep too, thus replace the residual. In half precision the output is rounded too coarsely for that
    (with small gates, the gradient would be wrong by a third), so the residual is kept. On a GPU there is one Triton
    kernel for the forward pass and one for the backward pass. Compiled or traced, this is :func:`residual_gate`.

    Args:
        residual: (N, C, H, W).
        gate: (N, C, 1, 1), from 0 to 1; if it is near 0, its derivative must be near 0 too.
        shortcut: (N, C, H, W).
        again: recomputes the shortcut from `sources` in the backward pass, so that it is not kept; no gradient flows
            through it.
        sources: tensors that are kept anyway.

    Returns:
        (N, C, H, W)
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return residual_gate(residual, gate, shortcut)
    if not (torch.is_grad_enabled() and (residual.requires_grad or gate.requires_grad or shortcut.requires_grad)):
        return _forward(residual, gate, shortcut)
    if again is None:
        again, sources = _itself, (shortcut,)
    return _ResidualGate.apply(residual, gate, shortcut, again, *sources)


class _ResidualGate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, gate: Tensor, shortcut: Tensor, again: Shortcut, *sources: Tensor
    ) -> Tensor:
        out = _forward(residual, gate, shortcut)
        ctx.sources = len(sources)
        ctx.keeps_residual = out.dtype in (torch.float16, torch.bfloat16)
        ctx.again = _itself if ctx.keeps_residual else again
        ctx.save_for_backward(gate, out, *((residual,) if ctx.keeps_residual else sources))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, out, *kept = ctx.saved_tensors
        kernels = _kernels_for(out)
        backward = kernels.backward if kernels else _backward
        to_shortcut, to_residual, total = backward(grad, gate, out, ctx.again(*kept), ctx.keeps_residual)
        to_gate = total if ctx.keeps_residual else total / gate.to(total.dtype).clamp(min=SMALLEST)
        return to_residual, to_gate.to(gate.dtype), to_shortcut, None, *(None for _ in range(ctx.sources))


def _itself(kept: Tensor) -> Tensor:
    return kept


def _forward(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    kernels = _kernels_for(residual)
    return (kernels.forward if kernels else residual_gate)(residual, gate, shortcut)


def _backward(
    grad: Tensor, gate: Tensor, out: Tensor, kept: Tensor, is_residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the kernel `residual_gate_triton.backward`, in PyTorch."""
    d = torch.ops.aten.threshold_backward(grad, out, 0)
    product = kept * d if is_residual else (out - kept).mul_(d)
    total = product.sum(dim=(2, 3), keepdim=True, dtype=torch.promote_types(product.dtype, torch.float32))
    # In place: allocating another map costs more than computing its values.
    return d, torch.mul(d, gate, out=product), total


def _kernels_for(x: Tensor) -> ModuleType | None:
    """The Triton kernels, or None if they do not support `x`; they compute in float32."""
    if not x.is_cuda or x.dtype == torch.float64 or x.numel() == 0 or len(x) > MOST_IMAGES:
        return None
    return _kernels(x.dtype)


@cache
def _kernels(dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, or None, with a warning, if they can't run."""
    try:
        from . import residual_gate_triton as kernels

        # They are compiled on their first call.
        x = torch.ones(1, 1, 1, 1, device="cuda", dtype=dtype)
        kernels.backward(x, x, kernels.forward(x, x, x), x, False)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        logger.warning(f"no Triton kernels ({type(error).__name__}: {reason}); SE gates use slower PyTorch operations")
        return None
    return kernels
