import pytest
import torch
import torchvision

from se_detection import SqueezeExcitation
from se_detection.errors import UserError

from ..helpers import raises


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


def test_gradients() -> None:
    se = SqueezeExcitation(4, reduction=2).double()
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(se, x)


def test_bad_arguments_are_refused() -> None:
    with raises("config.bad_value", "16", "8 channels"):
        SqueezeExcitation(8, reduction=16)
    for bad in ({"squeeze": "mean"}, {"gate": "swish"}):
        with pytest.raises(UserError, match=str(next(iter(bad.values())))):
            SqueezeExcitation(64, **bad)


def test_gate_bias_is_added_to_the_logits() -> None:
    x = torch.randn(4, 64, 5, 5)
    torch.manual_seed(1)
    usual = SqueezeExcitation(64)
    torch.manual_seed(1)
    opened = SqueezeExcitation(64, gate_bias=4.0)
    torch.testing.assert_close(opened.gate(x), torch.sigmoid(torch.logit(usual.gate(x)) + 4))
    assert 0.95 < float(opened.gate(x).mean()) < 0.99


@pytest.mark.parametrize("squeeze", ["avg", "max", "avgmax", "none"])
@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_that_start_as_the_identity(squeeze, gate, bias, dtype) -> None:
    se = SqueezeExcitation(32, 4, squeeze=squeeze, gate=gate, bias=bias, init="identity").to(dtype)
    x = 100 * torch.randn(2, 32, 5, 3, dtype=dtype)
    assert torch.equal(se(x), x)
    se(x).sum().backward()
    assert se.fc2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
def test_the_identity_has_doubled_gates(gate) -> None:
    usual, doubled = (SqueezeExcitation(32, 4, gate=gate, init=init) for init in ("default", "identity"))
    doubled.load_state_dict(usual.state_dict())
    x = torch.randn(2, 32, 5, 3)
    torch.testing.assert_close(doubled.gate(x), 2 * usual.gate(x))


def test_only_some_gates_can_start_as_the_identity() -> None:
    with raises("config.unknown_choice", "tanh", "sigmoid, hardsigmoid"):
        SqueezeExcitation(32, gate="tanh", init="identity")
    with raises("config.bad_value", "4.0"):
        SqueezeExcitation(32, gate_bias=4.0, init="identity")
    with raises("config.unknown_choice", "zero", "default, identity"):
        SqueezeExcitation(32, init="zero")
