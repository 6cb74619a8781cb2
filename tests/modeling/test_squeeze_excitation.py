import pytest
import torch
import torchvision

from se_detection import SqueezeExcitation
from se_detection.modeling.ops.residual_gate import residual_gate


def test_equals_torchvision() -> None:
    ours = SqueezeExcitation(64, reduction=16)
    theirs = torchvision.ops.SqueezeExcitation(64, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 64, 7, 5)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_papers_equations(bias: bool) -> None:
    """z = mean of x over space; s = sigmoid(W2 relu(W1 z)); out = s * x (equations 2 to 4)."""
    se = SqueezeExcitation(32, reduction=4, bias=bias).double()
    x = torch.randn(3, 32, 4, 6, dtype=torch.float64)
    w1, w2 = (layer.weight[:, :, 0, 0].detach().numpy() for layer in (se.fc1, se.fc2))
    b1, b2 = ((layer.bias.detach().numpy() if bias else 0) for layer in (se.fc1, se.fc2))
    z = x.numpy().mean(axis=(2, 3))
    hidden = (z @ w1.T + b1).clip(min=0)
    s = 1 / (1 + torch.from_numpy(-(hidden @ w2.T + b2)).exp())
    torch.testing.assert_close(se(x).detach(), x * s[:, :, None, None])


@pytest.mark.parametrize(
    ("gate", "function"),
    [
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        ("relu", torch.relu),
        ("hardsigmoid", lambda x: (x / 6 + 0.5).clamp(0, 1)),
    ],
)
@pytest.mark.parametrize(
    ("squeeze", "squeezed"),
    [
        ("avg", lambda x: x.mean(dim=(2, 3), keepdim=True)),
        ("max", lambda x: x.amax(dim=(2, 3), keepdim=True)),
        (
            "avgmax",
            lambda x: torch.cat([x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)], dim=1),
        ),
        ("none", lambda x: x),
    ],
)
def test_squeezes_and_gates(squeeze, squeezed, gate, function) -> None:
    se = SqueezeExcitation(16, reduction=2, squeeze=squeeze, gate=gate)
    x = torch.randn(2, 16, 5, 3)
    w1, w2 = se.fc1.weight[:, :, 0, 0], se.fc2.weight[:, :, 0, 0]
    hidden = torch.einsum("nchw,dc->ndhw", squeezed(x), w1) + se.fc1.bias[:, None, None]
    logits = torch.einsum("ndhw,cd->nchw", hidden.relu(), w2) + se.fc2.bias[:, None, None]
    torch.testing.assert_close(se(x), x * function(logits))


def test_extra_parameters_are_the_papers() -> None:
    """2 C^2 / r without biases (Sec. 4); C / r + C more with them."""
    for channels, r in [(256, 16), (2048, 16), (512, 2)]:
        without = sum(p.numel() for p in SqueezeExcitation(channels, r, bias=False).parameters())
        assert without == 2 * channels**2 // r
        with_biases = sum(p.numel() for p in SqueezeExcitation(channels, r).parameters())
        assert with_biases == without + channels // r + channels


def test_gradients() -> None:
    se = SqueezeExcitation(8, reduction=2).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(se, x)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="reduction ratio of 16 is too large for 8 channels"):
        SqueezeExcitation(8, reduction=16)
    with pytest.raises(ValueError, match="squeeze: 'mean' is not one of avg, max, avgmax, none"):
        SqueezeExcitation(64, squeeze="mean")
    with pytest.raises(ValueError, match="gate: 'swish' is not one of sigmoid, tanh, relu, hardsigmoid"):
        SqueezeExcitation(64, gate="swish")


@pytest.mark.parametrize("per_position", [False, True])
def test_residual_gate(per_position: bool) -> None:
    residual, shortcut = (torch.randn(2, 6, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    shape = (2, 6, 4, 3) if per_position else (2, 6, 1, 1)
    gate = torch.rand(*shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(residual_gate(residual, gate, shortcut), (residual * gate + shortcut).relu())
    assert torch.autograd.gradcheck(residual_gate, (residual, gate, shortcut))


def test_gate_bias_is_added_to_the_logits() -> None:
    x = torch.randn(4, 64, 5, 5)
    torch.manual_seed(1)
    usual = SqueezeExcitation(64)
    torch.manual_seed(1)
    opened = SqueezeExcitation(64, gate_bias=4.0)
    torch.testing.assert_close(opened.gate(x), torch.sigmoid(torch.logit(usual.gate(x)) + 4))
    assert 0.95 < float(opened.gate(x).mean()) < 0.99
