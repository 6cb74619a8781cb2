import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from se_detection.modeling.ops.residual_gate import _kernels, residual_sigmoid_gate

from ..helpers import relative_error


def formula(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    return (gate * residual + shortcut).relu()


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """Residual, logits and shortcut."""
    shapes = (shape, (*shape[:2], 1, 1), shape)
    return [torch.randn(size, device=device).to(dtype).requires_grad_() for size in shapes]


def test_gradcheck() -> None:
    for shape in ((2, 3, 4, 5), (1, 1, 1, 1), (3, 2, 7, 1)):
        assert torch.autograd.gradcheck(
            lambda residual, logits, shortcut: residual_sigmoid_gate(residual, logits.sigmoid(), shortcut),
            inputs(shape),
        )


def test_gradcheck_of_a_recomputed_shortcut() -> None:
    residual, logits, shortcut = inputs((2, 3, 4, 5))
    calls = []

    def again(x: Tensor) -> Tensor:
        calls.append(x)
        return 2 * x

    def gated(residual: Tensor, logits: Tensor, x: Tensor) -> Tensor:
        return residual_sigmoid_gate(residual, logits.sigmoid(), 2 * x, again, (x,))

    assert torch.autograd.gradcheck(gated, (residual, logits, shortcut))
    assert calls


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (0, 6, 5, 3), (2, 1, 7, 7), (3, 4, 1, 1)])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "mixed", "not dense"])
def test_equals_the_formula(shape, memory) -> None:
    residual, logits, shortcut = inputs(shape)
    grad = torch.randn(shape, dtype=torch.float64)
    views = {
        "contiguous": lambda x: x,
        "channels_last": lambda x: x.to(memory_format=torch.channels_last),
        "mixed": lambda x: x.to(memory_format=torch.channels_last) if x is residual else x,
        "not dense": lambda x: torch.cat([x, x], dim=3)[..., : shape[3]],
    }

    def run(operation) -> tuple[Tensor, ...]:
        out = operation(views[memory](residual), logits.sigmoid(), views[memory](shortcut))
        return out, *torch.autograd.grad(out, (residual, logits, shortcut), views[memory](grad))

    for ours, theirs in zip(run(residual_sigmoid_gate), run(formula), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_closed_gates() -> None:
    """The residual can't be computed from output and shortcut, but the slope of the sigmoid is 0 there."""
    residual, _, shortcut = inputs((1, 6, 4, 4), torch.float32)
    logits = torch.tensor([-1e4, -200.0, -90.0, -30.0, -14.0, 1e4]).reshape(1, 6, 1, 1).requires_grad_()
    grad = torch.randn(1, 6, 4, 4)
    leaves = (residual, logits, shortcut)
    ours, theirs = (
        torch.autograd.grad(operation(residual, logits.sigmoid(), shortcut), leaves, grad)
        for operation in (residual_sigmoid_gate, formula)
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("opening", [0, -3, -7])
@pytest.mark.parametrize("scale", [1, 10])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float16, 0.02)])
def test_the_gradient_of_the_gate_in_half_precision(dtype, limit, scale, opening) -> None:
    """Against the formula in float64, for gates around 0.5, 0.05 and 0.001, and shortcuts larger than the residual. The
    formula in half precision has the same error, mostly because outputs near 0 are rounded across the ReLU."""
    residual, logits, shortcut = inputs((4, 200, 16, 16), dtype)
    leaves = (residual, logits, (scale * shortcut).detach().requires_grad_())
    grad = torch.randn(4, 200, 16, 16).to(dtype)

    def gradient(operation, *leaves: Tensor) -> Tensor:
        residual, logits, shortcut = leaves
        out = operation(residual, (logits + opening).sigmoid(), shortcut)
        return torch.autograd.grad(out, logits, grad.to(out.dtype))[0].double()

    exact = gradient(formula, *(x.detach().double().requires_grad_() for x in leaves))
    for operation in (residual_sigmoid_gate, formula):
        assert (gradient(operation, *leaves) - exact).norm() < limit * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_kept_for_the_backward_pass(dtype) -> None:
    """Output, shortcut and gate, but not the residual; in half precision the residual, but not the shortcut."""
    residual, logits, shortcut = inputs((2, 3, 4, 5), dtype)
    residual, gate, shortcut = residual * 1, logits.sigmoid(), shortcut * 1
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()), lambda _: None):
        out = residual_sigmoid_gate(residual, gate, shortcut)
    one = shortcut if dtype == torch.float32 else residual
    assert sorted(kept) == sorted(x.data_ptr() for x in (out, one, gate))


def test_triton_in_its_interpreter_equals_the_formula() -> None:
    """Only float32 and float16: the interpreter computes with NumPy, which has no bfloat16."""
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_kernels.py")
    # The interpreter is slow if NumPy uses threads.
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 24
    for case, errors in found.items():
        assert max(errors) < (1e-5 if "float32" in case else 4e-3), (case, errors)


def test_without_triton_there_is_one_warning_and_pytorch_is_used(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "se_detection.modeling.ops.residual_gate_triton", None)
    _kernels.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [_kernels(torch.float32), _kernels(torch.float32)] == [None, None]
    _kernels.cache_clear()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("no Triton kernels (ModuleNotFoundError: ")
    assert "\n" not in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernels need a GPU")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_on_a_gpu_equals_the_formula(dtype, channels_last, caplog) -> None:
    leaves = inputs((3, 70, 33, 37), dtype, "cuda")
    grad = torch.randn(3, 70, 33, 37, device="cuda", dtype=dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format

    def run(operation, residual: Tensor, logits: Tensor, shortcut: Tensor) -> list[Tensor]:
        maps = (x.to(memory_format=memory) for x in (residual, shortcut))
        out = operation(next(maps), logits.sigmoid(), next(maps))
        found = torch.autograd.grad(out, (residual, logits, shortcut), grad.to(out.dtype))
        return [x.double() for x in (out, *found)]

    ours = run(residual_sigmoid_gate, *leaves)
    assert _kernels(dtype) is not None, caplog.text
    exact = run(formula, *(x.detach().double().requires_grad_() for x in leaves))
    for x, y in zip(ours, exact, strict=True):
        assert relative_error(x, y) < (1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps)
    assert all(torch.equal(x, y) for x, y in zip(ours, run(residual_sigmoid_gate, *leaves), strict=True))
