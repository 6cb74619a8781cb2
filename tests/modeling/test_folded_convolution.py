import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from se_detection.modeling.fuse.folded_convolution import fold_norms
from se_detection.modeling.ops.folded_conv import FoldedConv2d

from ..helpers import randomize_norms, relative_error


def conv_with(norm: str, **options) -> Conv2d:
    conv = Conv2d(16, 32, 3, padding=1, norm=get_norm(norm, 32), **options)
    return randomize_norms(conv).eval()


def folded(conv: Conv2d) -> Conv2d:
    conv = copy.deepcopy(conv)
    fold_norms(conv)
    return conv


@pytest.mark.parametrize("bias", [True, False])
def test_folded_weights_equal_torchs(bias) -> None:
    conv = conv_with("BN", bias=bias).double()
    expected = fuse_conv_bn_eval(conv, copy.deepcopy(conv.norm))
    ours = folded(conv)
    assert type(ours) is FoldedConv2d
    assert ours.norm is None
    assert not ours.weight.requires_grad
    torch.testing.assert_close(ours.weight.data, expected.weight.data, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(ours.bias.data, expected.bias.data, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", ""])
@pytest.mark.parametrize("activation", [None, F.relu])
def test_output_equals_convolution_and_norm(norm, activation) -> None:
    conv = conv_with(norm, activation=activation)
    x = torch.randn(2, 16, 9, 12).contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), conv.weight.double(), None if norm else conv.bias.double(), padding=1)
    if norm:
        n = conv.norm
        per_channel = [v.double()[:, None, None] for v in (n.weight, n.bias, n.running_mean, n.running_var)]
        weight, bias, mean, variance = per_channel
        expected = (expected + (0 if conv.bias is None else conv.bias.double()[:, None, None]) - mean) / (
            variance + n.eps
        ).sqrt() * weight + bias
    if activation:
        expected = expected.clamp(min=0)
    ours = folded(conv)
    with torch.no_grad():
        assert ours.has_onednn(x)
        assert relative_error(ours(x), expected.float()) < 1e-6
        # Without oneDNN's operators.
        assert relative_error(ours.double()(x.double()), expected) < 1e-6


def test_other_norms_and_activations_stay() -> None:
    model = nn.Sequential(
        conv_with("GN"),
        Conv2d(32, 8, 1, norm=nn.BatchNorm2d(8, track_running_stats=False)),
        Conv2d(8, 8, 1, activation=F.gelu),
        nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8),
    ).eval()
    x = torch.randn(2, 16, 5, 5)
    expected = model(x)
    fold_norms(model)
    assert torch.equal(model(x), expected)
    assert not any(isinstance(module, FoldedConv2d) for module in model.modules())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("size", [(16, 20), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_to(groups, gated, size, dtype) -> None:
    """On a map with fewer values than the weights, and on one with more."""
    conv = conv_with("FrozenBN", groups=groups, bias=False).to(dtype)
    x, total = torch.randn(3, 16, *size, dtype=dtype), torch.randn(3, 32, *size, dtype=dtype)
    x, total = (map_.contiguous(memory_format=torch.channels_last) for map_ in (x, total))
    gate = torch.rand(3, 32, 1, 1, dtype=dtype)
    expected = ((gate if gated else 1) * conv(x) + total).clamp(min=0).detach()
    with torch.no_grad():
        done = folded(conv).add_to(total, x, gate if gated else None)
    torch.testing.assert_close(done, expected)


def test_an_empty_batch() -> None:
    conv = folded(conv_with("FrozenBN", bias=False))
    x, total = torch.zeros(0, 16, 4, 4), torch.zeros(0, 32, 4, 4)
    with torch.no_grad():
        assert conv(x).shape == conv.add_to(total, x, torch.zeros(0, 32, 1, 1)).shape == (0, 32, 4, 4)


def test_the_norm_of_another_dtype() -> None:
    """Half-precision convolutions with norms in float32 keep their dtype."""
    conv = conv_with("FrozenBN", bias=False)
    conv.weight.data = conv.weight.data.bfloat16()
    assert isinstance(conv.norm, FrozenBatchNorm2d)
    ours = folded(conv)
    assert ours.weight.dtype == ours.bias.dtype == torch.bfloat16


def test_weights_stay_on_their_device() -> None:
    """`meta` replaces a GPU here."""
    model = nn.Sequential(conv_with("BN"), conv_with("", bias=True), conv_with("", bias=False)).to("meta")
    fold_norms(model)
    assert {type(conv) for conv in model} == {FoldedConv2d}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
