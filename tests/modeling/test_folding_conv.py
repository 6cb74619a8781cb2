import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import Tensor, nn

from se_detection.modeling.ops.folding_conv import FoldingConv2d, fold_frozen_norms

from ..helpers import randomize_norms, relative_error

KINDS = {
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 1, "stride": 2},
    "3x3": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 4},
}


def pair(norm: str = "FrozenBN", **options: int) -> tuple[nn.Module, nn.Module]:
    """Our layer and detectron2's, with the same weights."""
    theirs = Conv2d(8, 12, bias=False, norm=get_norm(norm, 12), **options)
    randomize_norms(theirs)
    block = nn.Sequential(copy.deepcopy(theirs))
    fold_frozen_norms(block)
    assert type(block[0]) is FoldingConv2d
    assert list(block[0].state_dict()) == list(theirs.state_dict())
    return block[0], theirs


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_equal_detectron2s(kind, channels_last) -> None:
    ours, theirs = (layer.double() for layer in pair(**KINDS[kind]))
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 8, 19, 14, dtype=torch.float64).to(memory_format=memory).requires_grad_()
    assert ours.folds(x)
    grad = torch.randn_like(theirs(x))
    found, expected = ((layer(x), *torch.autograd.grad(layer(x), (x, layer.weight), grad)) for layer in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_input_or_weight_is_frozen(trained) -> None:
    ours, theirs = pair(kernel_size=1)
    x = torch.randn(2, 8, 9, 9, requires_grad=trained == "x")
    for layer in (ours, theirs):
        layer.weight.requires_grad_(trained == "weight")
    found, expected = (
        torch.autograd.grad(layer(x).square().sum(), x if trained == "x" else layer.weight) for layer in (ours, theirs)
    )
    torch.testing.assert_close(found, expected)


def test_gradients_of_gradients() -> None:
    layer = pair(kernel_size=3, stride=2, groups=4)[0].double()
    x = torch.randn(1, 8, 11, 11, dtype=torch.float64, requires_grad=True)
    assert layer.folds(x)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, x).square()

    # fast_mode checks random directions instead of each element.
    assert torch.autograd.gradcheck(run, (x, layer.weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, layer.weight), fast_mode=True)


def test_it_keeps_only_input_and_weight() -> None:
    ours, _ = pair(kernel_size=3, padding=1)
    x = torch.randn(2, 8, 19, 14, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.detach()), lambda t: t):
        ours(x)
    large = [t.data_ptr() for t in kept if t.numel() > 12]
    assert sorted(large) == sorted([x.data_ptr(), ours.weight.data_ptr()])


@pytest.mark.parametrize("case", ["no gradients", "frozen", "small map", "BN", "GN", ""])
def test_without_folding_it_equals_detectron2_exactly(case) -> None:
    """With folding, rounding differs."""
    norm = {"GN": lambda width: nn.GroupNorm(4, width), "BN": "BN"}.get(case, "FrozenBN")
    ours, theirs = pair(norm, kernel_size=3)
    # A map of 8x9 has as many positions as a filter has weights.
    x = torch.randn(1, 8, 8, 9) if case == "small map" else torch.randn(2, 8, 32, 32)
    for layer in (ours, theirs):
        layer.requires_grad_(case != "frozen")
    with torch.set_grad_enabled(case != "no gradients"):
        assert ours.folds(x) == (not case)
        assert torch.equal(ours(x), theirs(x)) == bool(case)


def test_a_norm_that_is_frozen_later_is_folded() -> None:
    ours, _ = pair("BN", kernel_size=1)
    x = torch.randn(2, 8, 9, 9)
    assert not ours.folds(x)
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(ours).folds(x)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_an_empty_batch(kernel_size) -> None:
    ours, _ = pair(kernel_size=kernel_size, stride=2, padding=kernel_size // 2)
    x = torch.randn(0, 8, 9, 9, requires_grad=True)
    out = ours(x)
    assert out.shape == (0, 12, 5, 5)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert ours.weight.grad is None or not ours.weight.grad.any()


def test_autocast() -> None:
    """The output is bfloat16 and as close to float32's as detectron2's; gradients have the dtypes of their tensors."""
    ours, theirs = pair(kernel_size=3, padding=1)
    x = torch.randn(2, 8, 19, 14, requires_grad=True)
    grad = torch.randn(2, 12, 19, 14)
    exact = [theirs(x), *torch.autograd.grad(theirs(x), (x, theirs.weight), grad)]

    def run(layer: nn.Module) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        return [out, *torch.autograd.grad(out, (x, layer.weight), grad.bfloat16())]

    for our, their, best in zip(run(ours), run(theirs), exact, strict=True):
        assert our.dtype == their.dtype
        assert relative_error(our, best) < max(1.5 * relative_error(their, best), 0.01)


def test_norms_in_single_precision_after_a_convolution_in_half_precision() -> None:
    ours, theirs = (layer.bfloat16() for layer in pair(kernel_size=1))
    for layer in (ours, theirs):
        layer.norm.float()
    x = torch.randn(2, 8, 9, 9).bfloat16()
    assert ours.folds(x)
    assert ours(x).dtype == theirs(x).dtype == torch.bfloat16
    torch.testing.assert_close(ours(x), theirs(x), atol=0.05, rtol=0.02)
