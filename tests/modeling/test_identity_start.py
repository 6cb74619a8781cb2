"""SE blocks that start as the identity in a pre-trained ResNet: bit for bit what the plain ResNet computes."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import ResNet
from torch import nn

from se_detection import SEConfig, create_backbone, fuse_for_inference
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.config.se_config import PLAIN
from se_detection.modeling.ops.folding_conv import fold_frozen_norms
from se_detection.modeling.ops.residual_gate import residual_gate
from se_detection.modeling.partial_load import refuse_partial_load
from se_detection.modeling.squeeze_excitation import SqueezeExcitation

from ..helpers import raises, relative_error

IDENTITY = SEConfig(reduction=4, init="identity")
SIZE = (2, 3, 65, 99)


def pair(narrow, depth: int, norm: str, **se: object) -> tuple[ResNet, ResNet]:
    """A plain ResNet of detectron2's blocks, and an SE-ResNet with its weights."""
    plain = narrow(depth, norm=norm, se=PLAIN)
    gated = narrow(depth, norm=norm, se=SEConfig(reduction=4, init="identity", **se))
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(".se." in key for key in missing)
    return plain, gated


def assert_equal_maps(one: nn.Module, other: nn.Module, x: torch.Tensor) -> None:
    theirs = other(x)
    for name, ours in one(x).items():
        assert torch.equal(ours, theirs[name]), name


@pytest.mark.parametrize(
    ("depth", "se"),
    [
        (18, {}),
        (50, {}),
        (50, {"position": "3x3", "squeeze": "none"}),
        pytest.param(50, {"gate": "hardsigmoid", "squeeze": "max"}, marks=pytest.mark.slow),
        pytest.param(50, {"position": "pre", "bias": False}, marks=pytest.mark.slow),
        pytest.param(50, {"position": "post"}, marks=pytest.mark.slow),
        pytest.param(50, {"position": "identity"}, marks=pytest.mark.slow),
        pytest.param(154, {"squeeze": "avgmax"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_plain_resnet(narrow, depth, se, training) -> None:
    plain, gated = pair(narrow, depth, "BN", **se)
    plain.train(training)
    gated.train(training)
    x = torch.randn(SIZE)
    assert_equal_maps(gated, plain, x)
    with torch.no_grad():
        assert_equal_maps(gated, plain, x)
        with torch.autocast("cpu", torch.bfloat16, enabled=depth == 50):
            assert_equal_maps(gated, plain, x)
    own = gated.state_dict()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, own[key]), key


def test_equals_the_plain_resnet_with_frozen_norms(narrow) -> None:
    """In training, frozen norms are folded, which rounds differently; here they are folded in both networks."""
    plain, gated = pair(narrow, 50, "FrozenBN")
    x = torch.randn(SIZE)
    with torch.no_grad():
        assert_equal_maps(gated, plain, x)
    for block in (block for stage in plain.stages for block in stage):
        fold_frozen_norms(block)
    assert_equal_maps(gated, plain, x)


def test_gradients_are_those_of_the_formula(narrow) -> None:
    """The gates' gradients are right, and those of the other layers are the plain network's."""
    plain, gated = (network.double() for network in pair(narrow, 50, "FrozenBN"))
    x = torch.randn(SIZE, dtype=torch.float64)
    for network in (plain, gated):
        sum(map_.square().mean() for map_ in network(x).values()).backward()
    gradients = {name: parameter.grad for name, parameter in gated.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert relative_error(gradients[name], parameter.grad) < 1e-10, name
    naive = copy.deepcopy(gated)
    naive.zero_grad()
    for block in (block for stage in naive.stages for block in stage):
        block.position = "3x3"  # relu(residual + shortcut)
        last = block.conv3
        last.register_forward_hook(lambda layer, inputs, output, se=block.se: output * se.gate(output))
        block.residual = lambda x, block=block: block.conv3(block.conv2(block.conv1(x).relu()).relu())
    sum(map_.square().mean() for map_ in naive(x).values()).backward()
    for name, parameter in naive.named_parameters():
        assert relative_error(gradients[name], parameter.grad) < 1e-10, name


def test_no_more_is_kept_than_with_usual_sigmoids() -> None:
    residual, shortcut = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    logits = torch.zeros(2, 3, 1, 1, requires_grad=True)
    kept = {}
    for kind, gate in (("sigmoid", torch.sigmoid(logits)), ("doubled", 2 * torch.sigmoid(logits))):
        out = residual_gate(residual, gate, shortcut)
        kept[kind] = [tensor.shape for tensor in out.grad_fn.saved_tensors]
    assert kept["sigmoid"] == kept["doubled"]


def test_one_step_changes_the_gates(narrow) -> None:
    plain, gated = pair(narrow, 50, "BN")
    before = copy.deepcopy(gated.state_dict())
    x = torch.randn(SIZE)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    sum(map_.square().mean() for map_ in gated(x).values()).backward()
    optimizer.step()
    after = gated.state_dict()
    gates = [name for name, module in gated.named_modules() if isinstance(module, SqueezeExcitation)]
    assert len(gates) == 6
    for gate in gates:
        assert not torch.equal(after[f"{gate}.fc2.weight"], before[f"{gate}.fc2.weight"])
    # Only the gates' part of the step: the outputs differ from the plain network's.
    gated.load_state_dict(before | {key: tensor for key, tensor in after.items() if ".se." in key})
    for name, ours in gated.eval()(x).items():
        assert not torch.equal(ours, plain.eval()(x)[name])


def test_fused_networks_are_equal_too(narrow) -> None:
    plain, gated = pair(narrow, 50, "BN")
    x = torch.randn(SIZE)
    with torch.no_grad():
        theirs, ours = fuse_for_inference(plain)(x), fuse_for_inference(gated)(x)
        for name, map_ in ours.items():
            assert relative_error(map_, theirs[name]) < 1e-5


def test_plain_weights_load_into_the_identity_start(narrow, tmp_path) -> None:
    """With this project's checkpointer and detectron2's, but only all of them, and not into an ordinary start."""
    plain, gated = pair(narrow, 50, "BN")
    file = tmp_path / "plain.pth"
    torch.save({"model": plain.state_dict()}, file)
    for loader in (StrictCheckpointer, DetectionCheckpointer):
        network = narrow(50, norm="BN", se=IDENTITY)
        refuse_partial_load(network)
        loader(network).load(str(file))
        for key, tensor in gated.state_dict().items():
            assert ".fc1." in key or torch.equal(tensor, network.state_dict()[key]), key
    for loader, code in ((StrictCheckpointer, "weights.partial_backbone"), (DetectionCheckpointer, "plain_backbone")):
        network = narrow(50, norm="BN", se=SEConfig(reduction=4))
        refuse_partial_load(network)
        with raises(f"weights.{code.removeprefix('weights.')}", "MODEL.SE.INIT identity"):
            loader(network).load(str(file))
    state = gated.state_dict()
    del state["res3.0.se.fc2.weight"]
    torch.save({"model": state}, file)
    for loader in (StrictCheckpointer, DetectionCheckpointer):
        network = narrow(50, norm="BN", se=IDENTITY)
        refuse_partial_load(network)
        with raises("weights.partial_backbone", "res3.0.se.fc2.weight"):
            loader(network).load(str(file))


@pytest.mark.slow
def test_backbones_by_name(tmp_path) -> None:
    plain = create_backbone("resnet18").eval()
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    gated = create_backbone("se_resnet18", weights=str(tmp_path / "plain.pth"), se=SEConfig(init="identity")).eval()
    assert_equal_maps(gated, plain, torch.randn(SIZE))
