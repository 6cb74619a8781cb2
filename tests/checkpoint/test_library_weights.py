"""Weights of torchvision and pytorchcv for their own networks, by name."""

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from se_detection import create_backbone
from se_detection.checkpoint import library_weights, weights_file
from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.network_names import trained_input
from se_detection.modeling.timm_backbone import check_input

from ..helpers import raises, randomize_norms
from .test_timm_weights import config, load

pytestmark = pytest.mark.slow

NAME = "torchvision/shufflenet_v2_x0_5"
WEIGHTS = "torchvision://shufflenet_v2_x0_5"


@pytest.fixture
def classifier(monkeypatch, tmp_path) -> nn.Module:
    """Random weights instead of a download, and an empty cache."""
    network = randomize_norms(torchvision.models.shufflenet_v2_x0_5())
    monkeypatch.setattr(library_weights, "_pretrained", lambda name: network)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    return network


def assert_loaded(backbone: nn.Module, classifier: nn.Module) -> None:
    expected = classifier.state_dict()
    state = {key: value for key, value in backbone.network.state_dict().items() if "num_batches" not in key}
    assert len(state) > 200
    assert all(torch.equal(value, expected[backbone.timm_names[key]]) for key, value in state.items())


def test_weights_by_name(classifier) -> None:
    cfg = config(NAME)
    assert_loaded(load(cfg, WEIGHTS).backbone.bottom_up, classifier)
    with Uninitialized():
        backbone, model = create_backbone(NAME, weights=f"{WEIGHTS}.IMAGENET1K_V1"), build_model(cfg)
    assert_loaded(backbone, classifier)
    DetectionCheckpointer(model).load(WEIGHTS)
    assert_loaded(model.backbone.bottom_up, classifier)


def test_a_failed_download_is_explained(monkeypatch, tmp_path) -> None:
    def fail(name: str) -> nn.Module:
        raise OSError("no route to the server")

    monkeypatch.setattr(library_weights, "_pretrained", fail)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    with raises("weights.no_download", WEIGHTS, "no route to the server"):
        create_backbone(NAME, weights=WEIGHTS)
    with raises("config.unknown_network", "IMAGENET1K_V9", "IMAGENET1K_V1"):
        create_backbone(NAME, weights=f"{WEIGHTS}.IMAGENET1K_V9")
    assert list(tmp_path.rglob("*")) == []


def test_files_that_do_not_fit_are_refused(classifier, tmp_path) -> None:
    state = classifier.state_dict()
    state["stage9.weight"] = state.pop("stage4.3.branch2.0.weight")
    torch.save(state, tmp_path / "model.pth")
    with raises("weights.partial_backbone", "1 of the", "1 are unexpected"):
        create_backbone(NAME, weights=str(tmp_path / "model.pth"))
    with raises("weights.other_network", WEIGHTS, "MODEL.TIMM.NAME"):
        create_backbone("resnet18", weights=WEIGHTS)


def test_the_input_must_be_that_of_the_weights() -> None:
    cfg = config("torchvision/googlenet")
    with raises("weights.other_input", "torchvision://googlenet", "MODEL.PIXEL_MEAN: [127.5, 127.5, 127.5]"):
        check_input(cfg, "torchvision/googlenet")
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [127.5, 127.5, 127.5]
    check_input(cfg, "torchvision/googlenet")
    with raises("weights.other_network", "torchvision://resnet18", "torchvision/googlenet"):
        check_input(cfg, "torchvision/resnet18")


def test_googlenets_input() -> None:
    """Its classifier gets images with ImageNet's mean and std, and its first layer others."""
    network = torchvision.models.GoogLeNet(transform_input=True, init_weights=False, aux_logits=False).eval()
    pixels = 255 * torch.rand(1, 3, 64, 64)
    seen = []
    network.conv1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network((pixels / 255 - mean) / std)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in trained_input("torchvision/googlenet"))
    torch.testing.assert_close((pixels - mean) / std, seen[0])


def test_a_name_that_timm_has_no_weights_for_any_more() -> None:
    with raises("config.unknown_network", "tf_efficientnet_b0_ns"):
        trained_input("tf_efficientnet_b0_ns")
