import json
import logging
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from se_detection.modeling.ops.folding_conv import scaled_conv2d
from se_detection.modeling.ops.residual_gate import PYTORCH, _compare, checked_triton, residual_gate

from ..helpers import environment, relative_error

VIEWS = {
    "contiguous": lambda x, place: x,
    "channels_last": lambda x, place: x.to(memory_format=torch.channels_last),
    "mixed": lambda x, place: x.to(memory_format=torch.channels_last) if place == 0 else x,
    "not dense": lambda x, place: torch.cat([x, x], dim=3)[..., : x.shape[3]],
}


def formula(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    return (gate * residual + shortcut).relu()


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """Residual, logits and shortcut."""
    shapes = (shape, (*shape[:2], 1, 1), shape)
    return [torch.randn(size, device=device).to(dtype).requires_grad_() for size in shapes]


def gated(residual: Tensor, logits: Tensor, shortcut: Tensor) -> Tensor:
    return residual_gate(residual, logits.sigmoid(), shortcut)


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (1, 1, 1, 1)])
def test_gradients_and_their_gradients(shape) -> None:
    leaves = inputs(shape)
    leaves[1].data[:, 0] -= 20  # a nearly shut gate
    assert torch.autograd.gradcheck(gated, leaves)
    assert torch.autograd.gradgradcheck(gated, leaves)


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 3, 1, 1), (2, 1, 1, 1), (1, 1, 4, 2)])
def test_gates_and_shortcuts_of_other_shapes(shape) -> None:
    """A gate for each position, as of the squeeze `none`, and shapes that are broadcast; other functions too."""
    residual, gate, shortcut = inputs((2, 3, 4, 2))
    other = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for leaves in ((residual, other, shortcut), (residual, gate, other)):
        for operation in (gated, residual_gate):
            # fast_mode checks random directions instead of each element.
            assert torch.autograd.gradcheck(operation, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(operation, leaves, fast_mode=True)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tensors_without_values(device) -> None:
    with FakeTensorMode() if device == "cpu" else nullcontext():
        leaves = inputs((2, 3, 4, 5), device=device)
        gated(*leaves).sum().backward()
        assert [x.grad.shape for x in leaves] == [x.shape for x in leaves]


def projected(x: Tensor, weight: Tensor) -> Tensor:
    """A folded 1x1 convolution with the scale 1 / 2 and the bias 3."""
    channels = x.new_ones(len(weight))
    return scaled_conv2d(x, weight, channels / 2, 3 * channels, ((1, 1), (0, 0), (1, 1), 1))


def kept(operation, *tensors: Tensor) -> set[int]:
    """Where the tensors are that an operation keeps for the backward pass."""
    found = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.add(x.data_ptr()), lambda _: None):
        operation(*tensors)
    return found


def test_the_shortcut_of_a_folded_projection_is_computed_again() -> None:
    residual, logits, x = inputs((2, 3, 4, 5))
    weight = torch.randn(3, 3, 1, 1, dtype=torch.float64, requires_grad=True)

    def run(residual: Tensor, logits: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gated(residual, logits, projected(x, weight))

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(run, (residual, logits, x, weight), fast_mode=True)
    gate, shortcut = logits.sigmoid(), projected(x, weight)
    assert {x.data_ptr(), weight.data_ptr()} < kept(residual_gate, residual, gate, shortcut)
    assert shortcut.data_ptr() not in kept(residual_gate, residual, gate, shortcut)
    # Not if it was changed, or if the kernel is larger.
    ones = x.new_ones(3)
    larger = scaled_conv2d(x, weight.expand(3, 3, 3, 3), ones, ones, ((1, 1), (1, 1), (1, 1), 1))
    doubled = projected(x, weight)
    with torch.no_grad():
        doubled.mul_(2)
    for other in (projected(x, weight).mul_(2), doubled, larger):
        assert other.data_ptr() in kept(residual_gate, residual, gate, other)
        ours, theirs = (
            torch.autograd.grad(run(residual, gate, other).square().sum(), (logits, x, weight), retain_graph=True)
            for run in (residual_gate, formula)
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (0, 6, 5, 3), (2, 1, 7, 7), (3, 4, 1, 1)])
@pytest.mark.parametrize("memory", VIEWS)
def test_equals_the_formula(shape, memory) -> None:
    leaves, grad = inputs(shape), torch.randn(shape, dtype=torch.float64)
    view = VIEWS[memory]

    def run(operation) -> tuple[Tensor, ...]:
        residual, logits, shortcut = leaves
        out = operation(view(residual, 0), logits.sigmoid(), view(shortcut, 1))
        return out, *torch.autograd.grad(out, leaves, view(grad, 2))

    torch.testing.assert_close(run(residual_gate), run(formula))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_nearly_shut_gates(dtype, rtol) -> None:
    """Against the formula in float64; below 1e-38, float32 loses digits. The last logits are next to the limit."""
    residual, _, shortcut = inputs((2, 9, 4, 4), dtype)
    logits = torch.tensor([-1e4, -200, -90, -30, -20, -16, -6.91, -6.90, 1e4], dtype=dtype).expand(2, 9)
    leaves = (residual, logits.reshape(2, 9, 1, 1).clone().requires_grad_(), shortcut)
    grad = torch.randn(2, 9, 4, 4, dtype=dtype)
    ours = torch.autograd.grad(gated(*leaves), leaves, grad)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    theirs = torch.autograd.grad(formula(exact[0], exact[1].sigmoid(), exact[2]), exact, grad.double())
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-37, rtol=rtol)


def test_only_the_residuals_of_shut_gates_are_kept() -> None:
    residual, logits, shortcut = inputs((2, 3, 4, 5))
    logits.data[1, 2] = -10
    gate, sizes = logits.sigmoid(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()), lambda _: None):
        residual_gate(residual, gate, shortcut)
    # Output and shortcut, the residual of one channel, and the gate.
    assert sorted(size for size in sizes if size > 1) == [6, 20, 120, 120]


@pytest.mark.parametrize("opening", [0, -7])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.03), (torch.float16, 0.02)])
def test_the_gradient_of_the_gate_in_half_precision(dtype, limit, opening) -> None:
    """Against the formula in float64, for gates around 0.5 and 0.001, and shortcuts larger than the residual. The
    formula in half precision has the same error, mostly because outputs near 0 are rounded across the ReLU."""
    residual, logits, shortcut = inputs((4, 50, 16, 16), dtype)
    leaves = (residual, logits, (10 * shortcut).detach().requires_grad_())
    grad = torch.randn(4, 50, 16, 16).to(dtype)

    def gradient(operation, residual: Tensor, logits: Tensor, shortcut: Tensor) -> Tensor:
        out = operation(residual, (logits + opening).sigmoid(), shortcut)
        return torch.autograd.grad(out, logits, grad.to(out.dtype))[0].double()

    exact = gradient(formula, *(x.detach().double().requires_grad_() for x in leaves))
    for operation in (residual_gate, formula):
        assert (gradient(operation, *leaves) - exact).norm() < limit * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_kept_for_the_backward_pass(dtype) -> None:
    """Output, shortcut and gate, but not the residual; in half precision the residual, but not the shortcut."""
    residual, logits, shortcut = inputs((2, 3, 4, 5), dtype)
    residual, gate, shortcut = residual * 1, logits.sigmoid(), shortcut * 1
    found = kept(residual_gate, residual, gate, shortcut)
    # No gate is shut: no residuals of shut gates.
    assert len(found - {0}) == 3
    assert found > {gate.data_ptr(), (shortcut if dtype == torch.float32 else residual).data_ptr()}
    # Other gates than sigmoids keep residual, gate and output.
    tanh = logits.tanh()
    assert kept(residual_gate, residual, tanh, shortcut) > {residual.data_ptr(), tanh.data_ptr()}


@pytest.mark.slow
def test_triton_in_its_interpreter() -> None:
    """Right kernels are used; for wrong ones PyTorch's operations are used, and one line says so."""
    pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name("interpreted_kernels.py")
    # The interpreter is slow if NumPy uses threads.
    env = environment(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["right"] == [{"used": [True, True], "lines": []}] * 4
    for name, wrong in found["wrong"].items():
        assert wrong["used"] == [False, False], name
        (line,) = wrong["lines"]
        reason = "RuntimeError: out of resource" if name == "an exception" else "AssertionError: Tensor-likes are not"
        assert line.startswith(f"no Triton kernels for torch.float32 on cpu ({reason}")
        assert "\n" not in line
    assert max(found["views"]) < 1e-5


def test_without_triton_there_is_one_warning_and_pytorch_is_used(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "se_detection.modeling.ops.residual_gate_triton", None)
    checked_triton.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert checked_triton(torch.device("cpu"), torch.float32, torch.contiguous_format) is PYTORCH
    checked_triton.cache_clear()
    (record,) = caplog.records
    assert "(ModuleNotFoundError: " in record.getMessage()


def test_kernels_are_compared_in_inference_mode_too() -> None:
    with torch.inference_mode():
        _compare(PYTORCH, torch.device("cpu"), torch.float32, torch.contiguous_format)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernels need a GPU")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_on_a_gpu_equals_the_formula(dtype, channels_last, caplog) -> None:
    leaves = inputs((3, 70, 33, 37), dtype, "cuda")
    grad = torch.randn(3, 70, 33, 37, device="cuda", dtype=dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format

    def run(operation, residual: Tensor, logits: Tensor, shortcut: Tensor) -> list[Tensor]:
        out = operation(residual.to(memory_format=memory), logits.sigmoid(), shortcut.to(memory_format=memory))
        found = torch.autograd.grad(out, (residual, logits, shortcut), grad.to(out.dtype))
        return [x.double() for x in (out, *found)]

    ours = run(residual_gate, *leaves)
    assert checked_triton(leaves[0].device, dtype, memory) is not PYTORCH, caplog.text
    exact = run(formula, *(x.detach().double().requires_grad_() for x in leaves))
    for x, y in zip(ours, exact, strict=True):
        assert relative_error(x, y) < (1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps)
    assert all(torch.equal(x, y) for x, y in zip(ours, run(residual_gate, *leaves), strict=True))
