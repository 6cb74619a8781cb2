import re

import pytest
import timm
import torch
import torchvision

from se_detection.checkpoint.convert import convert_state_dict, fitting_source
from se_detection.checkpoint.converted import Converted
from se_detection.config.meta_device import Uninitialized

from ..helpers import raises


def state_dict(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"), Uninitialized():
        return timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    ("name", "source", "named"),
    [
        ("resnet18d", "timm", "layer conv1.0.weight"),
        ("ecaresnet50t", "timm", "layer conv1.0.weight"),
        ("vgg11", "timm", "layer features.0.weight"),
        ("legacy_seresnet18", "timm", "layer layer0.conv1.weight"),
        ("seresnet18", "timm-legacy", "layer conv1.weight"),
        ("legacy_seresnet18", "timm-legacy", "ReLU before each SE block"),
        ("legacy_seresnet34", "cadene", "SE-ResNet-34 from 'cadene'"),
        ("legacy_seresnext26_32x4d", "timm-legacy", "2, 2, 2, 2 bottlenecks"),
        ("resnet26", "timm", "2, 2, 2, 2 bottlenecks"),
    ],
)
def test_unsupported_layers_are_refused(name, source, named) -> None:
    with raises("weights.unsupported_network", named):
        convert_state_dict(state_dict(name), source)


def test_average_pooled_shortcuts_are_refused() -> None:
    """mmpretrain's `avg_down`, under a plain stem."""
    with torch.device("meta"), Uninitialized():
        weights = torchvision.models.resnet18().state_dict()
    weights["layer2.0.downsample.2.weight"] = weights.pop("layer2.0.downsample.1.weight")
    with raises("weights.unsupported_network", "layer layer2.0.downsample.2.weight"):
        convert_state_dict(weights, "torchvision")


def test_the_source_and_depth_are_checked() -> None:
    weights = state_dict("resnet18")
    with raises("weights.unknown_source", "'mxnet'", "moskomule"):
        convert_state_dict(weights, "mxnet")
    with raises("weights.wrong_depth", "101", "18"):
        convert_state_dict(weights, "timm", depth=101)
    assert convert_state_dict(weights, "timm", depth=18)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"layer3.1.se.fc2.bias": None},
            "1 tensor missing, unexpected or of another shape (in detectron2's names: res4",
        ),
        ({"layer3.1.conv2.weight": torch.ones(3, 3)}, "res4.1.conv2.weight"),
        ({"layer1.0.conv1.extra": torch.ones(3)}, "res2.0.conv1.extra"),
        ({"conv1.weight": torch.ones(64)}, "stem.conv1.weight"),
        ({"layer1.0.conv1.weight": torch.ones(())}, "do not fit a ResNet"),
        ({"layer1.0.se.fc1.weight": torch.ones(0, 64, 1, 1)}, "do not fit a ResNet"),
        ({"layer1.0.se.fc1.weight": torch.ones(4, 0, 1, 1)}, "res2.0.se.fc1"),
    ],
)
def test_an_incomplete_backbone_is_refused(change, named) -> None:
    weights = state_dict("seresnet18") | change
    with raises("weights.incomplete", named):
        Converted.from_state_dict(
            {key: value for key, value in weights.items() if value is not None}, "timm", sha256=""
        )


@pytest.mark.parametrize(
    ("name", "source"),
    [("seresnet18", "timm"), ("resnet50", "timm"), ("legacy_senet154", "timm-legacy"), ("vgg11", None)],
)
def test_the_source_is_recognized_by_its_layer_names(name, source) -> None:
    assert fitting_source(state_dict(name)) == source


def test_mmpretrain_and_moskomule_are_recognized_by_their_layer_names() -> None:
    weights = state_dict("seresnet18")
    renamed = {f"backbone.{key.replace('.se.fc', '.se_layer.conv')}": value for key, value in weights.items()}
    conv = {re.sub(r"(se_layer\.conv\d)", r"\1.conv", key): value for key, value in renamed.items()}
    assert fitting_source(conv) == "mmpretrain"
    linear = {
        key.replace(".fc1", ".fc.0").replace(".fc2", ".fc.2"): value
        for key, value in weights.items()
        if not re.search(r"\.se\..*bias", key)
    }
    assert fitting_source(linear) == "moskomule"
