"""SE blocks in training: gradients and memory, against blocks of plain operations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from se_detection import SEConfig
from se_detection.config.se_config import PLAIN
from se_detection.modeling.blocks import SEBasicBlock, SEBottleneckBlock, SENetBottleneckBlock
from se_detection.modeling.ops.folding_conv import FoldingConv2d

from ..helpers import randomize_norms, relative_error

POSITIONS = ("standard", "pre", "post", "identity", "3x3")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "hardsigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),
}
SQUEEZES: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3), keepdim=True),
    "max": lambda x: x.amax((2, 3), keepdim=True),
    "avgmax": lambda x: torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], 1),
    "none": lambda x: x,
}


def figure_5(block: nn.Module, x: Tensor, position: str, squeeze: str, gate: str) -> Tensor:
    """The paper's Figure 5, with detectron2's convolutions and norms."""

    def scaled(x: Tensor) -> Tensor:
        hidden = nn.Conv2d.forward(block.se.fc1, SQUEEZES[squeeze](x)).clamp(min=0)
        return x * ACTIVATIONS[gate](nn.Conv2d.forward(block.se.fc2, hidden))

    def at(here: str, x: Tensor) -> Tensor:
        return scaled(x) if here == position else x

    layers = [block.conv1, block.conv2] + ([block.conv3] if hasattr(block, "conv3") else [])
    branch = at("pre", x)
    for number, layer in enumerate(layers):
        branch = Conv2d.forward(layer, branch)
        if number == 1:
            branch = at("3x3", branch)
        if layer is not layers[-1]:
            branch = branch.relu()
    shortcut = x if block.shortcut is None else Conv2d.forward(block.shortcut, x)
    return at("post", (at("standard", branch) + at("identity", shortcut)).relu())


def pair(kind: type = SEBottleneckBlock, norm: str = "FrozenBN", **options: Any) -> list[nn.Module]:
    """Two blocks; the first one has a stride and projects its shortcut."""
    settings = {"se": SEConfig(reduction=4), "norm": norm} | options
    if kind is not SEBasicBlock:
        settings = {"bottleneck_channels": 16} | settings
    blocks = kind(16, 32, **{"stride": 2} | settings), kind(32, 32, **settings | {"stride": 1})
    return [randomize_norms(block) for block in blocks]


def gradients(out: Tensor, block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    leaves = {"x": x} | dict(block.named_parameters())
    grad = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


def check_gradients(block: nn.Module, x: Tensor, position: str, squeeze: str, gate: str) -> None:
    ours, theirs = block(x), figure_5(block, x, position, squeeze, gate)
    # PyTorch's hardsigmoid computes 1 / 6 in single precision.
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    close(ours, theirs)
    expected = gradients(theirs, block, x)
    for key, found in gradients(ours, block, x).items():
        close(found, expected[key], msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("position", "squeeze", "gate"),
    [
        *((position, squeeze, "sigmoid") for position in POSITIONS for squeeze in SQUEEZES),
        *(("standard", squeeze, gate) for squeeze in ("avg", "none") for gate in ("tanh", "relu", "hardsigmoid")),
    ],
)
def test_gradients_of_every_position_squeeze_and_gate(position, squeeze, gate) -> None:
    """On maps where all or some of the convolutions fold their norm."""
    first, second = pair(se=SEConfig(reduction=4, position=position, squeeze=squeeze, gate=gate))
    for block, size in ((first, 51), (second, 11)):
        x = torch.randn(1, block.in_channels, size, size - 2, dtype=torch.float64, requires_grad=True)
        assert block.conv2.folds(x) == (size == 51)
        check_gradients(block.double(), x, position, squeeze, gate)


def test_a_block_takes_an_se_config() -> None:
    block = pair(se=SEConfig(reduction=4, position="pre", squeeze="avgmax", gate="tanh", bias=False))[1].double()
    assert block.se.fc1.weight.shape == (32 // 4, 2 * 32, 1, 1)
    assert block.se.fc1.bias is block.se.fc2.bias is None
    x = torch.randn(2, 32, 9, 7, dtype=torch.float64, requires_grad=True)
    check_gradients(block, x, "pre", "avgmax", "tanh")


@pytest.mark.parametrize("channels_last", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["FrozenBN", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("BN", "GN"))])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SEBasicBlock, {}),
        (SEBottleneckBlock, {"stride_in_1x1": True}),
        (SEBottleneckBlock, {"num_groups": 2}),
        (SEBottleneckBlock, {"stride": 1, "dilation": 2}),
        (SENetBottleneckBlock, {"num_groups": 2, "projection_kernel": 3}),
    ],
    ids=["basic", "stride in the 1x1", "ResNeXt", "dilated", "SENet-154"],
)
def test_gradients_of_every_kind_of_block(kind, options, norm, channels_last) -> None:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    if norm == "GN":
        norm = partial(nn.GroupNorm, 4)
    for block in pair(kind, norm, **options):
        x = torch.randn(2, block.in_channels, 15, 13, dtype=torch.float64).to(memory_format=memory).requires_grad_()
        check_gradients(block.double(), x, "standard", "avg", "sigmoid")


def kept(model: nn.Module, x: Tensor) -> int:
    """The bytes that are kept for the backward pass, without the tensors of the model."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum(feature.square().sum() for feature in model(x).values())
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in found.items() if pointer not in own)


FINE_TUNING = {"norm": "FrozenBN", "freeze_at": 2}


@pytest.mark.parametrize("depth", [pytest.param(18, marks=pytest.mark.slow), 50])
def test_se_keeps_no_more_maps_than_a_plain_backbone(narrow, depth) -> None:
    """With detectron2's settings for fine-tuning: FrozenBN, stem and res2 frozen.

    In addition to the maps, a block may keep its squeezed values, the hidden layer before and after its ReLU, the gate,
    and the scale and bias of its norms. Other gates than sigmoids use the formula, which keeps the residuals.
    """
    plain, gated, other = (narrow(depth, se=se, **FINE_TUNING) for se in (PLAIN, SEConfig(), SEConfig(gate="tanh")))
    x = torch.randn(2, 3, 96, 128)
    allowed = 0
    for name in ("res3", "res4", "res5"):
        for block in getattr(gated, name):
            assert isinstance(block.conv1, FoldingConv2d)
            hidden, channels = block.se.fc1.weight.shape[:2]
            norms = sum(layer.norm.num_features for layer in block.children() if isinstance(layer, Conv2d))
            allowed += 4 * (len(x) * 2 * (channels + hidden) + 2 * norms)
    most = kept(plain, x)
    assert allowed < 0.1 * most
    assert most <= kept(gated, x) <= most + allowed
    assert kept(other, x) > 1.15 * most


def test_autocast() -> None:
    """In bfloat16 the gradients are as close to float32's as those of the formula."""

    def formula(block: nn.Module, x: Tensor) -> Tensor:
        return figure_5(block, x, "standard", "avg", "sigmoid")

    def run(forward: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(x.bfloat16())
        assert out.dtype == torch.bfloat16
        return gradients(out, block, x)

    for block in pair():
        x = torch.randn(2, block.in_channels, 31, 33, requires_grad=True)
        exact = gradients(formula(block, x), block, x)
        ours, theirs = run(block, block, x), run(partial(formula, block), block, x)
        for key, best in exact.items():
            assert ours[key].dtype == torch.float32, key
            assert relative_error(ours[key], best) < max(2 * relative_error(theirs[key], best), 0.02), key


def penalty(forward: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    (grad,) = torch.autograd.grad(forward(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), (x, *block.parameters()), allow_unused=True)


@pytest.mark.parametrize("size", [51, 11])
def test_a_gradient_penalty_has_the_right_gradients(size) -> None:
    """With and without folded norms."""
    for block in (block.double() for block in pair()):
        x = torch.randn(1, block.in_channels, size, size, dtype=torch.float64, requires_grad=True)
        expected = penalty(partial(figure_5, block, position="standard", squeeze="avg", gate="sigmoid"), block, x)
        torch.testing.assert_close(penalty(block, block, x), expected)


def test_transforms_of_torch_func() -> None:
    """The gradients of each image, and a directional derivative."""
    block = pair()[0].double()
    parameters = dict(block.named_parameters())
    x, direction = torch.randn(2, 2, 16, 51, 49, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(block, parameters, (image[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for image in range(2):
        out = block(x[image : image + 1])
        expected = torch.autograd.grad(out.square().sum(), list(parameters.values()))
        torch.testing.assert_close([grad[image] for grad in found.values()], list(expected))
    found, expected = (
        torch.func.jvp(forward, (x,), (direction,))
        for forward in (block, partial(figure_5, block, position="standard", squeeze="avg", gate="sigmoid"))
    )
    torch.testing.assert_close(found, expected)


def test_activation_checkpointing() -> None:
    for block in pair():
        x = torch.randn(2, block.in_channels, 15, 13, requires_grad=True)
        expected = gradients(block(x), block, x)
        out = checkpoint(block, x, use_reentrant=False)
        for key, found in gradients(out, block, x).items():
            torch.testing.assert_close(found, expected[key])


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    """One graph forward and one backward, in either memory order."""
    for block in pair():
        x = torch.randn(2, block.in_channels, 15, 13).to(memory_format=torch.channels_last).requires_grad_()
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        expected = gradients(block(x), block, x)
        for key, found in gradients(compiled(x), block, x).items():
            torch.testing.assert_close(found, expected[key])


SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in (SEBasicBlock, SENetBottleneckBlock)]
SLOW_POSITIONS = [pytest.param(position, marks=pytest.mark.slow) for position in POSITIONS[1:]]


@pytest.mark.parametrize("kind", [SEBottleneckBlock, *SLOW_KINDS])
@pytest.mark.parametrize("position", ["standard", *SLOW_POSITIONS])
def test_scripts_and_traces(kind, position) -> None:
    """Also with gradients, where the operators have other implementations than the formula."""
    if (kind, position) == (SEBasicBlock, "3x3"):
        return
    options = {"projection_kernel": 1} if kind is SENetBottleneckBlock else {}
    for block in pair(kind, se=SEConfig(reduction=4, position=position), **options):
        x = torch.randn(2, block.in_channels, 15, 13, requires_grad=True)
        expected = block(x)
        torch.testing.assert_close(torch.jit.script(block)(x), expected)
        torch.testing.assert_close(torch.jit.trace(block, x, check_trace=False)(x), expected)


@pytest.mark.slow
def test_exports() -> None:
    block = pair()[0].eval()
    x = torch.randn(2, 16, 15, 13)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))


def test_an_empty_batch() -> None:
    for block in pair():
        x = torch.randn(0, block.in_channels, 15, 13, requires_grad=True)
        block(x).sum().backward()
        assert x.grad.shape == x.shape
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in block.parameters())


def test_without_gradients_it_equals_the_formula_exactly() -> None:
    """In evaluation and in frozen stages, nothing is folded."""
    for block in pair():
        x = torch.randn(2, block.in_channels, 15, 13)
        with torch.no_grad():
            found = block(x)
            branch = Conv2d.forward(block.conv1, x).relu_()
            branch = Conv2d.forward(block.conv3, Conv2d.forward(block.conv2, branch).relu_())
            shortcut = x if block.shortcut is None else Conv2d.forward(block.shortcut, x)
            assert torch.equal(found, torch.addcmul(shortcut, branch, block.se.gate(branch)).relu_())


def test_senets_narrow_convolutions_have_hes_initial_weights() -> None:
    block = SENetBottleneckBlock(256, 512, bottleneck_channels=256, projection_kernel=3, num_groups=4, se=SEConfig())
    for conv in (block.conv1, block.conv2, block.shortcut):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
