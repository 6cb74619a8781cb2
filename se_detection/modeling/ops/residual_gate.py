"""The operation that SE adds to a ResNet: scale the residual by the gate, add the shortcut, ReLU."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import memory_format_of, runs_eagerly
from .folding_conv import recomputation

# The residuals of gates below this are kept: they can't be computed from the rounded output.
SHUT = 1e-3
# CUDA's limit for a grid axis, here of images, or of regions in a C4 head.
MOST_IMAGES = 65535

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The two passes of the operation."""

    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def residual_gate(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    """`relu(gate * residual + shortcut)`, the `Axpy` and ReLU of the released models.

    Multiplication and addition are one pass over memory. As two operations they are two passes, which is most of the
    time that SE adds to a ResNet. On a GPU there is one Triton kernel for the forward pass and one for the backward
    pass of sigmoid gates.

    With a sigmoid gate (or a multiple of it) in float32, no more is kept for the backward pass than in a plain block.
    The gradient of the gate is the sum over positions of `d * residual`, where `d` is the gradient before the ReLU. `d`
    is 0 where the output is 0; elsewhere the residual is `(out - shortcut) / gate`. The output and the shortcut, which
    plain blocks keep too, thus replace the residual, except in the channels of nearly shut gates; the shortcut of a
    folded 1x1 convolution is computed again. In half precision the output is rounded too coarsely for that (with small
    gates, the gradient would be wrong by a third), so the residual is kept.

    Args:
        residual: (N, C, H, W), the output of the residual branch.
        gate: (N, C, 1, 1), or (N, C, H, W) with the squeeze `none`.
        shortcut: (N, C, H, W).

    Returns:
        (N, C, H, W)
    """
    if not torch.jit.is_scripting() and runs_eagerly():  # type: ignore[attr-defined]
        return _eagerly(residual, gate, shortcut)
    return formula(residual, gate, shortcut)


def formula(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    """The operation in PyTorch."""
    return F.relu_(torch.addcmul(shortcut, residual, gate))


def _eagerly(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    # The kernels do not broadcast.
    if gate.shape != (*residual.shape[:2], 1, 1) or shortcut.shape != residual.shape:
        return formula(residual, gate, shortcut)
    if not (torch.is_grad_enabled() and (residual.requires_grad or gate.requires_grad or shortcut.requires_grad)):
        return _kernels_for(residual).forward(residual, gate, shortcut)
    if not _is_sigmoid(gate):
        # Near 0, other gates than sigmoids have large derivatives.
        return formula(residual, gate, shortcut)
    half = torch.promote_types(residual.dtype, shortcut.dtype) in (torch.float16, torch.bfloat16)
    # In a CUDA graph, and for tensors without values (meta, fake), the number of shut gates is unknown.
    unknown = gate.is_meta or type(gate) is not Tensor or (gate.is_cuda and torch.cuda.is_current_stream_capturing())
    return _with_gradients(residual, gate, shortcut, _kernels_for(residual), half or unknown)


def _is_sigmoid(gate: Tensor) -> bool:
    """Whether a gate is a sigmoid, or a sigmoid times something without gradients, such as 2 or a random mask."""
    node: Any = gate.grad_fn
    if node is not None and node.name() == "MulBackward0":
        factors = [factor for factor, _ in node.next_functions if factor is not None]
        node = factors[0] if len(factors) == 1 else None
    return node is not None and node.name() == "SigmoidBackward0"


def _with_gradients(residual: Tensor, gate: Tensor, shortcut: Tensor, kernels: Kernels, keep_residual: bool) -> Tensor:
    if keep_residual:
        return _ResidualGate.apply(residual, gate, shortcut, kernels, None, None, residual)
    again, kept = recomputation(shortcut) or (_itself, (shortcut,))
    shut = (gate.detach()[..., 0, 0] < SHUT).nonzero(as_tuple=True)
    return _ResidualGate.apply(residual, gate, shortcut, kernels, again, shut, residual[shut], *kept)


def _itself(shortcut: Tensor) -> Tensor:
    return shortcut


class _ResidualGate(torch.autograd.Function):
    """Keeps gate, output, and either the residual, or its `shut` channels and what `again` computes the shortcut of."""

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        gate: Tensor,
        shortcut: Tensor,
        kernels: Kernels,
        again: Callable[..., Tensor] | None,
        shut: tuple[Tensor, ...] | None,
        *kept: Tensor,
    ) -> Tensor:
        out = kernels.forward(residual, gate, shortcut)
        ctx.kernels, ctx.again, ctx.shut = kernels, again, shut
        ctx.save_for_backward(gate, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, out, first, *others = ctx.saved_tensors
        is_residual = ctx.again is None
        kept = first if is_residual else ctx.again(*others)
        # A closed gate does not divide by 0; its channel of the quotient is replaced.
        divisor = gate.clamp(min=SHUT)
        if torch.is_grad_enabled():
            # For gradients of gradients: PyTorch's operations, on tensors of the graph.
            residual = kept if is_residual else ((out - kept) / divisor).index_put(ctx.shut, first.to(out.dtype))
            d = grad * (out > 0)
            to_shortcut, to_residual, to_gate = d, d * gate, (d * residual).sum(dim=(2, 3), keepdim=True)
        else:
            to_shortcut, to_residual, to_gate = ctx.kernels.backward(grad, gate, out, kept, is_residual)
            if not is_residual:
                to_gate /= divisor
                of_shut = to_shortcut[ctx.shut] * first
                to_gate[ctx.shut] = of_shut.sum(dim=(1, 2), keepdim=True, dtype=to_gate.dtype)
        unused = None, None, None, None, *(None for _ in others)
        return to_residual, to_gate.to(gate.dtype), to_shortcut, *unused


def _backward(
    grad: Tensor, gate: Tensor, out: Tensor, kept: Tensor, is_residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as the kernel `residual_gate_triton.backward`, in PyTorch."""
    d = torch.ops.aten.threshold_backward(grad, out, 0)
    product = kept * d if is_residual else (out - kept).mul_(d)
    total = product.sum(dim=(2, 3), keepdim=True, dtype=torch.promote_types(product.dtype, torch.float32))
    # In place: allocating another map costs more than computing its values.
    return d, torch.mul(d, gate, out=product), total


PYTORCH = Kernels(formula, _backward)


def _kernels_for(x: Tensor) -> Kernels:
    """Triton's, which compute in float32, or PyTorch's, if those do not support `x`."""
    if not x.is_cuda or x.dtype == torch.float64 or x.numel() == 0 or len(x) > MOST_IMAGES:
        return PYTORCH
    return checked_triton(x.device, x.dtype, memory_format_of(x))


@cache
def checked_triton(device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> Kernels:
    """The Triton kernels, if their results are PyTorch's here; otherwise PyTorch's, with a warning."""
    try:
        from . import residual_gate_triton

        kernels = Kernels(residual_gate_triton.forward, residual_gate_triton.backward)
        _compare(kernels, device, dtype, memory_format)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        logger.warning(
            f"no Triton kernels for {dtype} on {device} ({type(error).__name__}: {reason}); SE gates use slower "
            "PyTorch operations"
        )
        return PYTORCH
    return kernels


def _compare(kernels: Kernels, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """Compares kernels with the formula and PyTorch's differentiation, on small random maps.

    Raises:
        AssertionError: a result differs.
    """
    chance = torch.Generator().manual_seed(0)

    def quarters(low: int, high: int, *shape: int) -> Tensor:
        # Their products and sums are exact in every dtype. So no output is 0 in only one of the two, by rounding.
        values = torch.randint(low, high, shape, generator=chance) / 4
        return values.to(device, dtype, memory_format=memory_format)

    # Without the caller's modes, and hooks such as those of activation checkpointing.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(_itself, _itself),
    ):
        # At least two tiles in each direction, some of them not full.
        shape = (2, 67, 5, 9) if memory_format == torch.channels_last else (2, 3, 33, 37)
        residual, shortcut, grad = (quarters(-8, 9, *shape) for _ in range(3))
        gate = quarters(1, 4, *shape[:2], 1, 1)
        leaves = residual.requires_grad_(), gate.requires_grad_(), shortcut.requires_grad_()
        out = formula(*leaves)
        expected = (out, *torch.autograd.grad(out, leaves, grad))
        for keep_residual in (True, False):
            out = _with_gradients(*leaves, kernels, keep_residual)
            torch.testing.assert_close((out, *torch.autograd.grad(out, leaves, grad)), expected)
