"""Prints as JSON what becomes of right and of wrong kernels; run with TRITON_INTERPRET=1, on the CPU.

This is a separate process, because Triton reads the variable on its first import. Only float32 and float16: the
interpreter computes with NumPy, which has no bfloat16.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from se_detection.modeling.ops import residual_gate_triton
from se_detection.modeling.ops.residual_gate import PYTORCH, checked_triton, logger

FORWARD, BACKWARD = residual_gate_triton.forward, residual_gate_triton.backward
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
CASES = [(dtype, memory) for dtype in (torch.float32, torch.float16) for memory in (CONTIGUOUS, LAST)]


def first_tile_only(grad: Tensor, gate: Tensor, out: Tensor, kept: Tensor, is_residual: bool) -> tuple[Tensor, ...]:
    to_shortcut, to_residual, _ = BACKWARD(grad, gate, out, kept, is_residual)
    product = (kept if is_residual else out - kept) * to_shortcut
    return to_shortcut, to_residual, product.flatten(2)[..., :1024].sum(2)[..., None, None].float()


def without_gate(*arguments: Any) -> tuple[Tensor, ...]:
    to_shortcut, _, total = BACKWARD(*arguments)
    return to_shortcut, to_shortcut, total


def fails(*arguments: Any) -> Tensor:
    raise RuntimeError("out of resource\nin the second line")


WRONG: dict[str, dict[str, Callable[..., Any]]] = {
    "no ReLU": {"forward": lambda residual, gate, shortcut: gate * residual + shortcut},
    "one tile": {"backward": first_tile_only},
    "no gate": {"backward": without_gate},
    "an exception": {"forward": fails},
}


def check(kernels: dict[str, Callable[..., Any]], dtype: torch.dtype, memory: torch.memory_format) -> dict[str, Any]:
    """Whether the kernels are used, and the lines that are logged in two calls."""
    residual_gate_triton.forward, residual_gate_triton.backward = FORWARD, BACKWARD
    for name, function in kernels.items():
        setattr(residual_gate_triton, name, function)
    checked_triton.cache_clear()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    found = [checked_triton(torch.device("cpu"), dtype, memory) for _ in range(2)]
    logger.removeHandler(handler)
    return {"used": [one is not PYTORCH for one in found], "lines": lines}


def errors_of_views() -> list[float]:
    """The largest errors for a shortcut and a gradient in other memory formats than the residual's."""
    torch.manual_seed(0)
    residual, shortcut, grad = torch.randn(3, 2, 5, 7, 3)
    gate = torch.rand(2, 5, 1, 1)
    shortcut, grad = shortcut.to(memory_format=LAST), grad.transpose(2, 3).contiguous().transpose(2, 3)
    out = FORWARD(residual, gate, shortcut)
    d = grad * (out > 0)
    expected = ((residual * gate + shortcut).relu(), d, d * gate, (d * residual).sum((2, 3), keepdim=True))
    found = (out, *BACKWARD(grad, gate, out, residual, True))
    assert all(x.stride() == residual.stride() for x in found[:3])
    return [(ours - theirs).abs().max().item() for ours, theirs in zip(found, expected, strict=True)]


if __name__ == "__main__":
    right = [check({}, *case) for case in CASES]
    wrong = {name: check(kernels, torch.float32, CONTIGUOUS) for name, kernels in WRONG.items()}
    print(json.dumps({"right": right, "wrong": wrong, "views": errors_of_views()}))
