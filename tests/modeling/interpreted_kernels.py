"""Prints the largest errors of the kernels as JSON, for memory formats, dtypes and shapes; run with TRITON_INTERPRET=1.

The expected values are those of the formula in float64 with PyTorch's own differentiation. Errors are relative to the
largest expected value. This is a separate process, because Triton reads the variable on its first import.
"""

import json
import math

import torch
from torch import Tensor

from se_detection.modeling.ops.residual_gate_triton import backward, forward

# Tiles have 2048 elements, and at most 1024 positions, or 64 channels in channels-last memory. Except for the first,
# these shapes fill some tiles only in part, and the last two need several tiles.
SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (2, 97, 3, 11), (1, 3, 33, 37))


def error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    found = ((ours.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()
    return math.inf if math.isnan(found) else found


def errors(shape: tuple[int, ...], dtype: torch.dtype, memory: str) -> list[float]:
    residual, shortcut, grad = (torch.randn(shape).to(dtype) for _ in range(3))
    gate = torch.rand(*shape[:2], 1, 1).to(dtype)
    inputs = [x.double().requires_grad_() for x in (residual, gate, shortcut)]
    expected = (inputs[0] * inputs[1] + inputs[2]).relu()
    to_residual, to_gate, to_shortcut = torch.autograd.grad(expected, inputs, grad.double())
    if memory == "channels_last":
        residual, shortcut = (x.to(memory_format=torch.channels_last) for x in (residual, shortcut))
    if memory == "mixed":
        shortcut = shortcut.to(memory_format=torch.channels_last)
        grad = grad.transpose(2, 3).contiguous().transpose(2, 3)
    out = forward(residual, gate, shortcut)
    assert out.dtype == dtype
    assert out.stride() == residual.stride()
    found = backward(grad, gate, out, shortcut, False)
    again = backward(grad, gate, out, residual, True)
    assert all(x.stride() == out.stride() for x in (*found[:2], *again[:2]))
    # The error of the total comes from the rounding of the output, however small the gate.
    wanted = (expected, to_shortcut, to_residual, to_gate * inputs[1], to_shortcut, to_residual, to_gate)
    return [error(x, y.detach()) for x, y in zip((out, *found, *again), wanted, strict=True)]


if __name__ == "__main__":
    torch.manual_seed(0)
    print(
        json.dumps(
            {
                f"{dtype} {memory} {shape}": errors(shape, dtype, memory)
                for dtype in (torch.float32, torch.float16)
                for memory in ("contiguous", "channels_last", "mixed")
                for shape in SHAPES
            }
        )
    )
