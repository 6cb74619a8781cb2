"""SE in networks that have none, compared with the same networks and a naive SE in their hooks."""

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers import SEModule, freeze_batch_norm_2d
from torch import Tensor, nn

from se_detection import SEConfig
from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.insert_se import SE_SITES, SESite, insert_se, register_se_sites
from se_detection.modeling.se_resnet import make_se_resnet
from se_detection.modeling.squeeze_excitation import SqueezeExcitation

from ..helpers import raises, relative_error, with_random_weights
from .timm_families import SHALLOW

SIZE = (2, 3, 33, 49)
IDENTITY = SEConfig(init="identity")


def of_timm(name: str) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name, features_only=True, **SHALLOW.get(name, {}))


def inception_resnet_v2() -> nn.Module:
    """With one block of each kind, instead of 40 blocks of three kinds."""
    network = timm.create_model("inception_resnet_v2", features_only=True)
    for repeated in (network.repeat, network.repeat_1, network.repeat_2):
        del repeated[1:]
    return network


def of_torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(num_classes=10, **options)


def of_pytorchcv(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = pytest.importorskip("pytorchcv.model_provider", reason="this test needs pytorchcv")
        # Without the last pool, which needs images of 224 pixels.
        return models.get_model(name).features[:-1]

    return make


# How a network is made, and a pattern of the modules whose outputs SE scales, from each family's paper or code.
INSIDE = r"blocks\.0\.0\.bn1$|blocks\.[1-6]\.\d\.bn2$"
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet18": (of_timm("resnet18"), r"layer\d\.\d\.bn2$"),
    "resnext50_32x4d": (of_timm("resnext50_32x4d"), r"layer\d\.\d\.bn3$"),
    "resnetv2_50": (of_timm("resnetv2_50"), r"blocks\.\d\.conv3$"),
    "resnext26ts": (of_timm("resnext26ts"), r"conv3_1x1$"),
    "hrnet_w18_small": (of_timm("hrnet_w18_small"), r"(layer1|incre_modules\.\d)\.\d\.bn3$|branches\..*\.bn2$"),
    "cspresnext50": (of_timm("cspresnext50"), r"blocks\.\d\.conv3$"),
    "cs3darknet_focus_s": (of_timm("cs3darknet_focus_s"), r"blocks\.\d\.conv2$"),
    "densenet121": (of_timm("densenet121"), r"denselayer\d+\.conv2$"),
    "inception_resnet_v2": (inception_resnet_v2, r"conv2d$"),
    "inception_v3": (of_timm("inception_v3"), r"^Mixed_\d\w$"),
    "vgg11_bn": (of_timm("vgg11_bn"), "ReLU"),
    "mobilenetv1_100": (of_timm("mobilenetv1_100"), r"blocks\.\d\.\d\.bn2$"),
    "mobilenetv2_100": (of_timm("mobilenetv2_100"), INSIDE),
    "mobilenetv4_conv_small": (of_timm("mobilenetv4_conv_small"), r"pw_exp$|dw_mid$"),
    "regnetx_002": (of_timm("regnetx_002"), r"\.conv2$"),
    "torchvision resnet18": (of_torchvision("resnet18"), r"layer\d\.\d\.bn2$"),
    "shufflenet_v2_x0_5": (of_torchvision("shufflenet_v2_x0_5"), r"branch2$"),
    "googlenet": (of_torchvision("googlenet", init_weights=False, aux_logits=False), r"inception\d\w$"),
    "bninception": (of_pytorchcv("bninception"), r"unit\d$"),
    "shufflenet_g3_w1": (of_pytorchcv("shufflenet_g3_w1"), r"expand_bn3$"),
}
FAST = ("resnet18", "mobilenetv1_100", "shufflenet_v2_x0_5")
SIZES = {
    **dict.fromkeys(("hrnet_w18_small", "bninception"), (2, 3, 32, 64)),
    **dict.fromkeys(("inception_resnet_v2", "inception_v3"), (2, 3, 75, 97)),
}
REDUCTION = {"shufflenet_v2_x0_5": 4, "regnetx_002": 8}
families = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)


def outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    result = network(x)
    return [result] if isinstance(result, Tensor) else list(result)


def sites_of(network: nn.Module, name: str) -> list[nn.Module]:
    pattern = FAMILIES[name][1]
    modules = [(path, module) for path, module in network.named_modules() if path]
    if pattern == "ReLU":
        return [module for _, module in modules if isinstance(module, nn.ReLU)]
    found = [(path, module) for path, module in modules if re.search(pattern, path)]
    if name == "mobilenetv4_conv_small":
        # After the depthwise convolution in the middle, if there is one, and else after the expansion.
        middle = {path for path, module in found if path.endswith("dw_mid") and not isinstance(module, nn.Identity)}
        found = [each for each in found if each[0] in middle or f"{each[0].rpartition('.')[0]}.dw_mid" not in middle]
        found = [each for each in found if each[0] in middle or each[0].endswith("pw_exp")]
    return [module for _, module in found]


def naive_se(se: SqueezeExcitation, x: Tensor) -> Tensor:
    """z = mean of x; s = sigmoid(W2 relu(W1 z + b1) + b2); s * x (equations 2 to 4 of the paper)."""
    w1, w2 = se.fc1.weight[:, :, 0, 0], se.fc2.weight[:, :, 0, 0]
    z = x.mean(dim=(2, 3))
    s = 1 / (1 + (-((z @ w1.T + se.fc1.bias).clamp(min=0) @ w2.T + se.fc2.bias)).exp())
    return s[:, :, None, None] * x


@families
def test_each_family(name) -> None:
    plain = with_random_weights(FAMILIES[name][0]).eval()
    reduction = REDUCTION.get(name, 16)
    gated, naive, ordinary = (copy.deepcopy(plain) for _ in range(3))
    x = torch.randn(SIZES.get(name, SIZE))

    # A start that changes nothing, with the weights' own names.
    names = insert_se(gated, SEConfig(reduction=reduction, init="identity"))
    blocks = [gated.get_submodule(path) for path in names]
    assert all(isinstance(block, SqueezeExcitation) for block in blocks)
    assert len(blocks) == len(sites_of(plain, name)) > 0
    with torch.no_grad():
        for ours, theirs in zip(outputs(gated, x), expected := outputs(plain, x), strict=True):
            assert torch.equal(ours, theirs)
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(key.startswith(tuple(names)) for key in missing)

    # A naive SE in the same places.
    names = insert_se(ordinary, SEConfig(reduction=reduction))
    for path, site in zip(names, sites_of(naive, name), strict=True):
        block = ordinary.get_submodule(path)
        site.register_forward_hook(lambda layer, inputs, output, block=block: naive_se(block, output))
    with torch.no_grad():
        for ours, theirs in zip(results := outputs(ordinary, x), outputs(naive, x), strict=True):
            assert relative_error(ours, theirs) < 1e-4
        assert relative_error(results[-1], expected[-1]) > 1e-3

    # Training: the same outputs and statistics; after a step of the gates alone, others.
    plain.train()
    gated.train()
    torch.manual_seed(1)
    expected = outputs(plain, x)
    torch.manual_seed(1)
    trained = outputs(gated, x)
    for ours, theirs in zip(trained, expected, strict=True):
        assert torch.equal(ours, theirs)
    own = gated.state_dict()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, own.get(key, own.get(re.sub(r"(bn\d)\.", r"\1.norm.", key)))), key
    sum(output.square().mean() for output in trained).backward()
    for block in blocks:
        # Of few hidden channels, the ReLU may shut all; then only the bias learns.
        assert block.fc2.bias.grad.abs().max() > 0
        block.fc2.bias.data -= block.fc2.bias.grad / block.fc2.bias.grad.abs().max()
    torch.manual_seed(1)
    with torch.no_grad():
        assert not torch.equal(outputs(gated, x)[-1], expected[-1])


def test_each_module_of_inception_v4() -> None:
    """Four of kind A, seven of kind B, three of kind C, and two reductions."""
    with torch.device("meta"), Uninitialized():
        names = insert_se(timm.create_model("inception_v4", features_only=True), SEConfig())
    assert names == [f"features_{number}.se" for number in range(6, 22)]


@pytest.mark.parametrize("name", ["seresnet18", "seresnext50_32x4d"])
def test_equals_timms_se_resnets(name) -> None:
    """timm's SE-ResNets have SE in the same places, and the same names of layers."""
    # By default, timm rounds the hidden channels to a multiple of 8.
    exact = partial(SEModule, rd_divisor=1)
    options = {"layers": (1, 1, 1, 1)}
    make = partial(timm.create_model, name, **options)
    theirs = with_random_weights(partial(make, block_args={"attn_layer": exact})).eval()
    with Uninitialized():
        ours = make(block_args={"attn_layer": None})
        insert_se(ours, SEConfig())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(SIZE)
    with torch.no_grad():
        assert relative_error(ours.eval()(x), theirs(x)) < 1e-5


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (of_timm("mobilenetv1_100"), ["blocks.0.0.se_output", "blocks.1.0.se_output"]),
        (of_timm("vgg11_bn"), ["features_2.se", "features_6.se"]),
        (of_torchvision("resnet18"), ["layer1.0.bn2.se", "layer1.1.bn2.se"]),
        (of_torchvision("shufflenet_v2_x0_5"), ["stage2.0.branch2.se", "stage2.1.branch2.se"]),
    ],
)
def test_copies_and_conversions_keep_the_gates(make, names) -> None:
    network = with_random_weights(make).eval()
    assert insert_se(network, SEConfig(reduction=2))[:2] == names
    x = torch.randn(SIZE)
    with torch.no_grad():
        expected = outputs(network, x)
        copied, pickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
        for other in (copied, pickled, freeze_batch_norm_2d(copy.deepcopy(network))):
            assert relative_error(outputs(other, x)[-1], expected[-1]) < 1e-4
        # A copy has gates of its own.
        copied.get_submodule(names[0]).fc2.weight.data.fill_(9)
        assert not torch.equal(outputs(copied, x)[-1], expected[-1])
        assert torch.equal(outputs(network, x)[-1], expected[-1])


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv2_100", "densenet121"))]
)
def test_before_and_after_features_only(name) -> None:
    with torch.device("meta"), Uninitialized():
        wrapped, network = (timm.create_model(name, features_only=only) for only in (True, False))
    names = insert_se(network, SEConfig())
    assert [path.replace("features_", "features.") for path in insert_se(wrapped, SEConfig())] == names


def test_norms_of_torchvision_load_under_their_old_names() -> None:
    plain = with_random_weights(of_torchvision("resnet18"))
    with Uninitialized():
        gated = of_torchvision("resnet18")()
    insert_se(gated, IDENTITY)
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {key.split(".")[3] for key in missing} == {"se"}
    gated.load_state_dict(gated.state_dict())
    x = torch.randn(SIZE)
    assert torch.equal(gated.eval()(x), plain.eval()(x))


class Block(nn.Module):
    """A family that is not in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def network_of_blocks() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 16, 3), Block(), nn.ModuleList([Block()])[0], nn.Conv2d(16, 8, 1))


def test_other_families_are_refused_until_they_are_registered(monkeypatch) -> None:
    network = network_of_blocks()
    with raises("model.no_se_sites", "Sequential", "register_se_sites"):
        insert_se(network, SEConfig())
    monkeypatch.setitem(SE_SITES, "", SE_SITES["timm.models.vgg.VGG"])  # restores the table
    register_se_sites(Block, lambda block: [SESite("conv")])
    try:
        assert insert_se(network, SEConfig()) == ["1.conv.se", "2.conv.se"]
    finally:
        del SE_SITES[f"{Block.__module__}.Block"]
    x = torch.randn(2, 1, 5, 7)
    body = network[1]
    inside = nn.functional.conv2d(network[0](x), body.conv.weight, body.conv.bias, padding=1)
    torch.testing.assert_close(body(network[0](x)), network[0](x) + naive_se(body.conv.se, inside))


def test_sites_by_name() -> None:
    network = network_of_blocks()
    assert insert_se(network, SEConfig(reduction=8), sites=["1", "3"]) == ["1.se", "3.se"]
    assert network[3].se.fc1.out_channels == 1
    timms = with_random_weights(of_timm("mobilenetv2_050")).eval()
    assert insert_se(timms, SEConfig(reduction=4), sites=["blocks.1.0.bn2"]) == ["blocks.1.0.bn2.se"]
    x = torch.randn(SIZE)
    with torch.no_grad():
        frozen = freeze_batch_norm_2d(copy.deepcopy(timms))
        assert relative_error(outputs(frozen, x)[-1], outputs(timms, x)[-1]) < 1e-4
        assert isinstance(frozen.get_submodule("blocks.1.0.bn2.se"), SqueezeExcitation)
    with raises("model.no_se_sites", "4"):
        insert_se(network_of_blocks(), SEConfig(), sites=["4"])


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("efficientnet_b0", "model.has_se", "blocks.0.0.se"),
        ("seresnet18", "model.has_se", "layer1.0.se"),
        ("seresnet33ts", "model.has_se", "stages.0.0.attn"),
        ("regnetz_b16", "model.has_se", "attn"),
        ("mobilenetv3_small_100", "model.has_se", "blocks.0.0.se"),
        ("skresnet18", "model.no_se_sites", "register_se_sites"),
        ("vit_tiny_patch16_224", "model.no_se_sites", "register_se_sites"),
        ("mobilenetv2_050", "config.bad_value", "MODEL.SE.REDUCTION"),
    ],
)
def test_refused_networks(name, code, named) -> None:
    with torch.device("meta"), Uninitialized():
        network = timm.create_model(name)
    se = SEConfig(reduction=32) if code == "config.bad_value" else SEConfig()
    with raises(code, named):
        insert_se(network, se)


def test_se_is_inserted_once() -> None:
    for make in (of_timm("resnet18"), of_timm("mobilenetv1_100"), of_torchvision("resnet18")):
        with torch.device("meta"), Uninitialized():
            network = make()
            insert_se(network, SEConfig())
            with raises("model.has_se", "se"):
                insert_se(network, SEConfig())


@pytest.mark.parametrize("option", [{"position": "pre"}, {"stages": ["res5"]}, {"reduction_per_stage": [4, 4, 4, 4]}])
def test_options_of_resnets_are_refused(option) -> None:
    with raises("config.bad_value", f"MODEL.SE.{next(iter(option)).upper()}"):
        insert_se(network_of_blocks(), SEConfig(**option))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_the_papers_networks() -> None:
    """Table 3: 4.7 M for SE-MobileNet; SE-ResNet-50 as timm's."""
    with torch.device("meta"), Uninitialized():
        mobilenet = timm.create_model("mobilenetv1_100")
        assert parameters(mobilenet) == 4_231_976
        insert_se(mobilenet, SEConfig())
        pointwise = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
        added = sum(2 * width * (width // 16) + width // 16 + width for width in pointwise)
        assert parameters(mobilenet) == 4_231_976 + added
        assert round(parameters(mobilenet) / 1e6, 1) == 4.7
        resnet = timm.create_model("resnet50")
        insert_se(resnet, SEConfig())
        assert parameters(resnet) == parameters(timm.create_model("seresnet50"))


def test_parameters_of_networks_from_pytorchcv() -> None:
    """Table 3: 2.4 M for SE-ShuffleNet; SE-BN-Inception's hidden widths, from the released prototxt."""
    models = pytest.importorskip("pytorchcv.model_provider", reason="this test needs pytorchcv")
    with torch.device("meta"), Uninitialized():
        shufflenet = models.get_model("shufflenet_g3_w1")
        insert_se(shufflenet, SEConfig())
        assert parameters(shufflenet) / 1e6 == pytest.approx(2.4, abs=0.1)
        inception = models.get_model("bninception")
        names = insert_se(inception, SEConfig())
        widths = [inception.get_submodule(name).fc1.out_channels for name in names]
        assert widths == [16, 20, 36, 36, 36, 38, 38, 66, 64, 64]


@pytest.mark.parametrize(("kind", "reduction"), [("eca", 16), ("ese", 16), ("cbam", 16), ("gc", 8)])
def test_relatives_equal_timms_networks(kind, reduction) -> None:
    options = {"layers": (1, 1, 1, 1)}
    make = partial(timm.create_model, "resnet18", **options)
    theirs = with_random_weights(partial(make, block_args={"attn_layer": kind})).eval()
    with Uninitialized():
        ours = make().eval()
        assert insert_se(ours, SEConfig(kind=kind, reduction=reduction))[0] == "layer1.0.se"
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(SIZE)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_relatives_are_only_for_inserted_blocks() -> None:
    with raises("config.bad_value", "MODEL.SE.KIND", "eca"):
        make_se_resnet(18, se=SEConfig(kind="eca"), norm="BN", out_features=["res5"])
    with raises("config.bad_value", "MODEL.SE.KIND", "identity"):
        SEConfig(kind="eca", init="identity")
    with raises("config.unknown_choice", "MODEL.SE.KIND", "nl"):
        SEConfig(kind="nl")
