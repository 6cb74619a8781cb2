import re

import pytest
import timm
import torch
import torchvision

from se_detection import UserError
from se_detection.checkpoint.convert import convert_state_dict, fitting_source
from se_detection.checkpoint.converted import Converted


def state_dict(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return timm.create_model(name).state_dict()


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("resnet50d", "timm", "it belongs to the deep stem"),
        ("seresnet50t", "timm", "it belongs to the deep stem"),
        ("seresnext26d_32x4d", "timm", "it belongs to the deep stem"),
        ("ecaresnet50d_pruned", "timm", "it belongs to the deep stem"),
        ("vgg11", "timm", "layer features.0.weight is not a layer of a plain ResNet or SE-ResNet from 'timm'"),
        ("legacy_seresnet50", "timm", "layer layer0.conv1.weight is not a layer"),
        ("seresnet50", "timm-legacy", "layer conv1.weight is not a layer"),
        ("legacy_seresnet18", "timm-legacy", "SE-ResNet-18 .* it has a ReLU before each SE block"),
        ("legacy_seresnet34", "cadene", "SE-ResNet-34 .* it has a ReLU before each SE block"),
        (
            "legacy_seresnext26_32x4d",
            "timm-legacy",
            "the stages have 2, 2, 2, 2 bottlenecks, which is not a network of depth 18,",
        ),
        ("resnet200", "timm", "the stages have 3, 24, 36, 3 bottlenecks"),
    ],
)
def test_unsupported_layers_are_refused_with_the_reason(name, source, reason) -> None:
    with pytest.raises(UserError, match=reason):
        convert_state_dict(state_dict(name), source)


def test_average_pooled_shortcuts_are_refused() -> None:
    """mmpretrain's `avg_down`, under a plain stem."""
    weights = torchvision.models.resnet50().state_dict()
    weights["layer2.0.downsample.2.weight"] = weights.pop("layer2.0.downsample.1.weight")
    with pytest.raises(UserError, match="it belongs to the average-pooled shortcut of ResNet-D"):
        convert_state_dict(weights, "torchvision")


def test_the_source_and_depth_are_checked() -> None:
    weights = state_dict("resnet50")
    with pytest.raises(UserError, match="source 'mxnet' is not one of timm, torchvision, timm-legacy, cadene"):
        convert_state_dict(weights, "mxnet")
    with pytest.raises(UserError, match="depth: 101, but the layers are those of depth 50; omit depth, or give 50"):
        convert_state_dict(weights, "timm", depth=101)
    assert convert_state_dict(weights, "timm", depth=50)


def test_an_incomplete_backbone_is_refused() -> None:
    weights = state_dict("seresnet50")
    missing = {key: value for key, value in weights.items() if key != "layer3.4.se.fc2.bias"}
    with pytest.raises(UserError, match=r"1 tensors are missing, .* \(in detectron2's names: res4\.4\.se\.fc2\.bias\)"):
        Converted.from_state_dict(missing, "timm", sha256="")
    misshapen = weights | {"layer3.4.conv2.weight": torch.ones(3, 3)}
    with pytest.raises(UserError, match=r"res4\.4\.conv2\.weight"):
        Converted.from_state_dict(misshapen, "timm", sha256="")
    renamed = {key.replace("layer4", "layer5"): value for key, value in weights.items()}
    with pytest.raises(UserError, match=r"layer layer5\.0\.conv1\.weight is not a layer"):
        Converted.from_state_dict(renamed, "timm", sha256="")


@pytest.mark.parametrize(
    ("name", "source"),
    [("seresnet50", "timm"), ("resnet50", "timm"), ("legacy_senet154", "timm-legacy"), ("vgg11", None)],
)
def test_the_source_is_recognized_by_its_layer_names(name, source) -> None:
    assert fitting_source(state_dict(name)) == source


def test_mmpretrain_and_moskomule_are_recognized_by_their_layer_names() -> None:
    weights = state_dict("seresnet50")
    renamed = {f"backbone.{key.replace('.se.fc', '.se_layer.conv')}": value for key, value in weights.items()}
    conv = {re.sub(r"(se_layer\.conv\d)", r"\1.conv", key): value for key, value in renamed.items()}
    assert fitting_source(conv) == "mmpretrain"
    linear = {
        key.replace(".fc1", ".fc.0").replace(".fc2", ".fc.2"): value
        for key, value in weights.items()
        if not re.search(r"\.se\..*bias", key)
    }
    assert fitting_source(linear) == "moskomule"
