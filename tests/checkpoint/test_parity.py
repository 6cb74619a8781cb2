"""Converted weights give the same outputs as in the network that they come from."""

from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from projects.paper import parity
from se_detection import SEConfig, create_backbone
from se_detection.checkpoint.convert import convert_state_dict
from se_detection.checkpoint.converted import Converted
from se_detection.checkpoint.released_weights import has_stride_in_1x1
from se_detection.checkpoint.verify import relative_errors, timm_name
from se_detection.config.meta_device import Uninitialized

from ..helpers import raises, relative_error, with_random_weights

STAGES = ("res2", "res3", "res4", "res5")
# A multiple of 32, and a size at which the two layouts differ.
SIZES = ((64, 64), (65, 97))


def worst_error(ours: nn.Module, theirs: nn.Module, stages: nn.Module) -> float:
    """The maximum relative error at any output of `ours`; `stages` has the modules layer1 to layer4 of `theirs`."""
    expected: dict[str, Tensor] = {}
    for number in range(1, 5):
        stages.get_submodule(f"layer{number}").register_forward_hook(
            lambda module, args, output, name=f"res{number + 1}": expected.update({name: output})
        )
    errors = []
    for size in SIZES:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected["linear"] = theirs(images)
            outputs = ours(images)
        assert set(outputs) >= set(STAGES)
        errors += [relative_error(output, expected[name]) for name, output in outputs.items()]
    return max(errors)


def backbone(
    name: str, weights: dict[str, Tensor], *, layout: str | None = None, se: SEConfig | None = None
) -> nn.Module:
    with torch.device("meta"), Uninitialized():
        ours = create_backbone(name, layout=layout, se=se, num_classes=1000, out_features=(*STAGES, "linear"))
    ours.load_state_dict(weights, assign=True)
    return ours.eval()


@pytest.mark.parametrize(
    ("timm_name", "name", "layout", "source"),
    [
        ("seresnet18", "se_resnet18", "torchvision", "timm"),
        ("legacy_seresnet50", "se_resnet50", "caffe", "timm-legacy"),
        *(
            pytest.param(*networks, marks=pytest.mark.slow)
            for networks in (
                ("legacy_seresnext50_32x4d", "se_resnext50_32x4d", "caffe", "timm-legacy"),
                ("legacy_senet154", "senet154", "caffe", "timm-legacy"),
                ("seresnet34", "se_resnet34", "torchvision", "timm"),
                ("seresnet50", "se_resnet50", "torchvision", "timm"),
                ("resnet101", "resnet101", "torchvision", "timm"),
                ("seresnext50_32x4d", "se_resnext50_32x4d", "torchvision", "timm"),
            )
        ),
    ],
)
def test_timm_networks(timm_name, name, layout, source) -> None:
    theirs = with_random_weights(partial(timm.create_model, timm_name)).eval()
    # timm rounds the hidden channels up to multiples of 8: res2 of the basic blocks has 8, not 64 / 16 = 4.
    se = SEConfig(reduction_per_stage=(8, 16, 16, 16)) if name in ("se_resnet18", "se_resnet34") else None
    weights = convert_state_dict(theirs.state_dict(), source)
    assert worst_error(backbone(name, weights, layout=layout, se=se), theirs, theirs) <= 1e-5
    if name == "se_resnet50":
        # The reason for the metadata: the other layout loads, but differs.
        other = backbone(name, weights, layout="torchvision" if layout == "caffe" else "caffe")
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert relative_error(other(images)["linear"], theirs(images)) > 0.01


class LinearSE(nn.Module):
    """SE as in moskomule/senet.pytorch, senet/se_module.py: `fc.0` and `fc.2` are linear and without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class ConvolutionSE(nn.Module):
    """SE as in mmpretrain/models/utils/se_layer.py: `conv1.conv` and `conv2.conv`, 1x1 convolutions with bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential()
        self.conv1.add_module("conv", nn.Conv2d(channels, channels // 16, 1))
        self.conv2 = nn.Sequential()
        self.conv2.add_module("conv", nn.Conv2d(channels // 16, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()


class MoskomuleBlock(Bottleneck):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.se = LinearSE(self.conv3.out_channels)
        self.bn3.register_forward_hook(lambda module, args, output: self.se(output))


class MmpretrainBlock(Bottleneck):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.se_layer = ConvolutionSE(self.conv3.out_channels)
        self.bn3.register_forward_hook(lambda module, args, output: self.se_layer(output))


@pytest.mark.slow
def test_moskomules_network() -> None:
    theirs = with_random_weights(partial(ResNet, MoskomuleBlock, [3, 4, 6, 3])).eval()
    converted = Converted.from_state_dict(theirs.state_dict(), "moskomule", sha256="")
    assert not converted.assumptions.se_bias
    assert worst_error(backbone("se_resnet50", converted.weights, se=SEConfig(bias=False)), theirs, theirs) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("block", [Bottleneck, MmpretrainBlock])
def test_mmpretrains_networks(block) -> None:
    network = with_random_weights(partial(ResNet, block, [3, 4, 6, 3])).eval()
    # In mmpretrain's ImageClassifier, the network is `backbone` and its last layer `head.fc`.
    state_dict = {
        f"head.{key}" if key.startswith("fc.") else f"backbone.{key}": value
        for key, value in network.state_dict().items()
    }
    name = "resnet50" if block is Bottleneck else "se_resnet50"
    assert worst_error(backbone(name, convert_state_dict(state_dict, "mmpretrain")), network, network) <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "seresnet18",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "seresnet50b", "seresnext50_32x4d")),
    ],
)
def test_pytorchcvs_networks(name) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv is not installed")
    theirs = with_random_weights(partial(provider.get_model, name)).eval()
    in_1x1 = has_stride_in_1x1(name)
    converted = Converted.from_state_dict(theirs.state_dict(), "pytorchcv", sha256="", stride_in_1x1=in_1x1)
    assert converted.assumptions.stride_in_1x1 is (name in ("resnet50", "seresnet50"))
    ours = backbone(
        name.removesuffix("b").replace("se", "se_"), converted.weights, layout="msra" if in_1x1 else "torchvision"
    )
    # Its own pool takes only 7x7 maps.
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)
    stages = nn.Module()
    for number in range(1, 5):
        stages.add_module(f"layer{number}", theirs.features.get_submodule(f"stage{number}"))
    assert worst_error(ours, theirs, stages) <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnext50_32x4d", marks=pytest.mark.slow)])
def test_torchvisions_networks(name) -> None:
    theirs = with_random_weights(partial(torchvision.models.get_model, name)).eval()
    assert worst_error(backbone(name, convert_state_dict(theirs.state_dict(), "torchvision")), theirs, theirs) <= 1e-5


# Of se_resnet50 in pretrainedmodels 0.7.4, pretrainedmodels/models/senet.py (PyPI), without the BN statistics.
CADENE = {
    *("layer0.conv1.weight", "layer0.bn1.weight", "last_linear.weight", "last_linear.bias"),
    *(f"layer1.0.{layer}{number}.weight" for layer in ("conv", "bn") for number in (1, 2, 3)),
    *(f"layer1.0.se_module.fc{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")),
    *("layer1.0.downsample.0.weight", "layer1.0.downsample.1.weight"),
}


def test_cadenes_layer_names_are_those_of_timms_legacy_models() -> None:
    with torch.device("meta"), Uninitialized():
        state_dict = timm.create_model("legacy_seresnet50").state_dict()
    assert set(state_dict) >= CADENE
    assert convert_state_dict(state_dict, "cadene").keys() == convert_state_dict(state_dict, "timm-legacy").keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["se_resnet50", "se_resnext50_32x4d"])
def test_cadenes_networks(name) -> None:
    senet = pytest.importorskip(
        "pretrainedmodels.models.senet", reason="pretrainedmodels is not installed: pip install pretrainedmodels"
    )
    theirs = with_random_weights(partial(getattr(senet, name), pretrained=None)).eval()
    weights = convert_state_dict(theirs.state_dict(), "cadene")
    # Without the classifier, which takes only 7x7 feature maps.
    with Uninitialized():
        ours = create_backbone(name, layout="caffe").eval()
    ours.load_state_dict({key: value for key, value in weights.items() if not key.startswith("linear.")})
    stages = nn.Sequential(OrderedDict(theirs.named_children()))[:5]
    assert worst_error(ours, stages, stages) <= 1e-5


@pytest.mark.slow
def test_verify_detects_a_wrong_tensor() -> None:
    theirs = with_random_weights(partial(timm.create_model, "resnet18"))
    converted = Converted.from_state_dict(theirs.state_dict(), "timm", sha256="")
    errors = relative_errors(converted, SIZES)
    assert set(errors) == set(STAGES)
    assert {len(of_sizes) for of_sizes in errors.values()} == {2}
    assert max(map(max, errors.values())) < 1e-12
    converted.weights["res4.1.conv1.norm.running_mean"] = converted.weights["res4.0.conv1.norm.running_mean"]
    errors = relative_errors(converted, SIZES[:1])
    assert max(errors["res3"]) < 1e-12
    assert min(errors["res4"]) > 1e-5
    assert 1e-5 < min(errors["res5"]) < 1


@pytest.mark.parametrize(
    ("name", "source"),
    [("wide_resnet50_2", "timm"), ("legacy_seresnext50_32x4d", "timm-legacy"), ("seresnet50", "torchvision")],
)
def test_verify_names_timms_network(name, source) -> None:
    with torch.device("meta"), Uninitialized():
        weights = timm.create_model(name).state_dict()
    assert timm_name(Converted.from_state_dict(weights, source, sha256="").assumptions) == name


def test_verify_needs_a_network_of_timm() -> None:
    with torch.device("meta"), Uninitialized():
        weights = ResNet(MoskomuleBlock, [3, 4, 6, 3]).state_dict()
    with raises("weights.not_verifiable", "moskomule"):
        relative_errors(Converted.from_state_dict(weights, "moskomule", sha256=""))


@pytest.mark.slow
def test_the_parity_table(monkeypatch) -> None:
    name = "seresnet18"
    monkeypatch.setattr(parity, "relative_errors", partial(relative_errors, sizes=SIZES[:1]))
    assert parity.parity(name) == {"name": name, "layout": "torchvision", "error": pytest.approx(0, abs=1e-12)}
    original = parity.Converted.from_state_dict

    def disturbed(state_dict: dict[str, Tensor], *args: object, **options: object) -> Converted:
        converted = original(state_dict, *args, **options)
        converted.weights["res3.0.conv1.norm.bias"] = converted.weights["res3.0.conv1.norm.bias"] + 1
        return converted

    monkeypatch.setattr(parity.Converted, "from_state_dict", disturbed)
    assert parity.parity(name)["error"] > 1e-3
    assert name in parity.NAMES
