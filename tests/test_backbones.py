"""Backbones by name, with weights: against the networks and files of timm and torchvision."""

import logging
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import Tensor, nn

from se_detection import SEConfig, convert_state_dict, create_backbone, create_res5, model_zoo
from se_detection.checkpoint import timm_handler, weights_file
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.timm_weights import assumptions_of
from se_detection.config.meta_device import Uninitialized

from .helpers import raises, relative_error, with_random_weights

CLASSIFIER = {"num_classes": 1000, "out_features": ("res5", "linear")}


@pytest.fixture(scope="module")
def se_resnet50() -> nn.Module:
    return with_random_weights(partial(timm.create_model, "seresnet50")).eval()


@pytest.fixture
def timm_name(se_resnet50, monkeypatch, module_path) -> str:
    """A name whose weights timm would download; here they are random. All tests share the cache."""
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: se_resnet50)
    monkeypatch.setattr(timm_handler, "_check_available", lambda name: None)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(module_path))
    return "timm://seresnet50.a1_in1k"


def convert(model: nn.Module, source: str, folder, name: str = "converted.pth") -> str:
    torch.save(model.state_dict(), folder / "original.pth")
    convert_input(str(folder / "original.pth"), source).save(folder / name)
    return str(folder / name)


def has_the_tensors(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    return all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


@pytest.mark.slow
def test_weights_by_timms_name(se_resnet50, timm_name) -> None:
    expected = convert_state_dict(se_resnet50.state_dict(), "timm")
    with Uninitialized():
        backbone = create_backbone("se_resnet50", weights=timm_name)
        classifier = create_backbone("se_resnet50", weights=timm_name, **CLASSIFIER).eval()
    assert has_the_tensors(backbone, expected)
    assert has_the_tensors(classifier, expected)
    images = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        assert relative_error(classifier(images)["linear"], se_resnet50(images)) < 1e-5


@pytest.mark.parametrize("name", ["converted.pth", "converted.safetensors"])
def test_weights_of_a_file(name, tmp_path) -> None:
    theirs = with_random_weights(torchvision.models.resnet18).eval()
    with Uninitialized():
        ours = create_backbone("resnet18", weights=convert(theirs, "torchvision", tmp_path, name), **CLASSIFIER).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(ours(images)["linear"], theirs(images)) < 1e-5


@pytest.mark.slow
def test_a_classifier_of_other_classes_stays_random(timm_name, se_resnet50) -> None:
    backbone = create_backbone("se_resnet50", weights=timm_name, num_classes=7, out_features=("res5", "linear"))
    expected = convert_state_dict(se_resnet50.state_dict(), "timm")
    linear = backbone.linear.state_dict()
    assert linear["weight"].shape == (7, 2048)
    assert has_the_tensors(backbone, expected | {f"linear.{key}": tensor for key, tensor in linear.items()})


@pytest.mark.slow
def test_some_of_the_stages_are_loaded(timm_name, se_resnet50) -> None:
    expected = convert_state_dict(se_resnet50.state_dict(), "timm")
    with Uninitialized():
        backbone = create_backbone("se_resnet50", weights=timm_name, out_features=("res3",), freeze_at=2)
        res5 = create_res5("se_resnet50", weights=timm_name)
    assert not hasattr(backbone, "res4")
    assert has_the_tensors(backbone, expected)
    assert has_the_tensors(res5, {key.removeprefix("res5."): tensor for key, tensor in expected.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "code", "named"),
    [
        ("se_resnet50", {"layout": "caffe"}, "weights.other_network", ["STRIDE_IN_1X1", "STEM_TYPE"]),
        ("se_resnet50", {"se": SEConfig(position="post")}, "weights.other_network", ["MODEL.SE.POSITION"]),
        ("se_resnet50", {"se": SEConfig(squeeze="max")}, "weights.other_network", ["MODEL.SE.SQUEEZE"]),
        ("se_resnet50", {"se": SEConfig(gate="relu")}, "weights.other_network", ["MODEL.SE.GATE"]),
        ("se_resnet101", {"out_features": ("res3",)}, "weights.other_network", ["MODEL.RESNETS.DEPTH"]),
        ("se_resnet101", {}, "weights.partial_backbone", ["res4.6"]),
        ("se_resnet50", {"se": SEConfig(reduction=8)}, "weights.partial_backbone", ["another shape"]),
        ("resnet50", {}, "weights.partial_backbone", ["has SE"]),
    ],
)
def test_weights_of_another_network_are_refused(timm_name, name, options, code, named) -> None:
    with raises(code, *named), Uninitialized():
        create_backbone(name, weights=timm_name, **options)


def test_plain_weights_are_refused_for_an_se_backbone(tmp_path) -> None:
    path = convert(with_random_weights(torchvision.models.resnet18), "torchvision", tmp_path)
    with raises("weights.partial_backbone", "plain"), Uninitialized():
        create_backbone("se_resnet18", weights=path)


@pytest.mark.slow
def test_caffe_weights_need_the_caffe_layout(tmp_path) -> None:
    theirs = with_random_weights(partial(timm.create_model, "legacy_seresnet50"))
    path = convert(theirs, "timm-legacy", tmp_path)
    with raises("weights.other_network", "STEM_TYPE"), Uninitialized():
        create_backbone("se_resnet50", weights=path)
    expected = torch.load(path, weights_only=True)["model"]
    with Uninitialized():
        backbone = create_backbone("se_resnet50", weights=path, layout="caffe")
    assert has_the_tensors(backbone, expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["Toy/faster_rcnn_SE_R_18_FPN", "COCO-Detection/faster_rcnn_SE_R_50_DC5_1x"])
def test_the_backbone_of_a_detector_is_loaded(config, tmp_path) -> None:
    """As detectron2's own checkpointer saves it, with and without FPN."""
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.RPN.CONV_DIMS = 16, [16]
    detector = with_random_weights(partial(build_model, cfg))
    DetectionCheckpointer(detector, str(tmp_path)).save("model_final")
    name = f"se_resnet{cfg.MODEL.RESNETS.DEPTH}"
    with Uninitialized():
        backbone = create_backbone(name, weights=str(tmp_path / "model_final.pth"))
    assert has_the_tensors(backbone, getattr(detector.backbone, "bottom_up", detector.backbone).state_dict())


@pytest.mark.slow
def test_the_assumed_input_is_logged(timm_name, tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="se_detection.backbones"), Uninitialized():
        create_backbone("se_resnet50", weights=timm_name)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "se_detection.backbones")
    assert "RGB images in 0..255 with mean [123.675, 116.28, 103.53] and std [58.395, 57.12, 57.375]" in line
    torch.save({"model": create_backbone("resnet18").state_dict()}, tmp_path / "bare.pth")
    caplog.clear()
    create_backbone("resnet18", weights=str(tmp_path / "bare.pth"))
    assert "bare.pth does not record its network and its input" in caplog.text


def test_a_missing_file_is_named(tmp_path) -> None:
    with raises("weights.not_loadable", "nowhere.pth"):
        create_backbone("resnet18", weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("seresnet50", "se_resnet50"),
        ("se-resnet50", "se_resnet50"),
        ("SE-ResNet-101", "se_resnet101"),
        ("legacy_senet154", "senet154"),
        ("resnet51", "resnet50"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, meant) -> None:
    with raises("model.unknown_backbone", repr(name), repr(meant)):
        create_backbone(name)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "resnet50", "se": SEConfig()}, "'se_resnet50'"),
        ({"name": "senet154", "layout": "torchvision"}, "'senet154'"),
        ({"name": "se_resnet50", "out_features": ["res9"]}, "out_features: ['res9']"),
        ({"name": "se_resnet50", "out_features": ["linear"]}, "num_classes"),
    ],
)
def test_bad_arguments_are_refused(arguments, named) -> None:
    with raises("model.bad_argument", named):
        create_backbone(**arguments)


def test_a_timm_backbone_from_a_detector_with_the_same_se(tmp_path) -> None:
    """A file of a run: its gates have the function that they were trained with."""
    cfg = model_zoo.get_config("CPU/faster_rcnn_SE_efficientnet_lite0_FPN")
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.INSERT_SE = "cpu", "resnet10t", True
    cfg.MODEL.WEIGHTS, cfg.MODEL.SE.STAGES = "", ["res2", "res3", "res4", "res5"]
    detector = build_model(cfg)
    StrictCheckpointer(detector, str(tmp_path), assumptions=assumptions_of(cfg)).save("model_final")
    weights = str(tmp_path / "model_final.pth")
    se = SEConfig(init="identity")
    backbone = create_backbone("timm/resnet10t", se=se, weights=weights, norm="FrozenBN")
    expected = detector.backbone.bottom_up.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in backbone.state_dict().items())
    with raises("weights.other_network", "MODEL.SE", "change name, se or weights"):
        create_backbone("timm/resnet10t", se=replace(se, init="default"), weights=weights, norm="FrozenBN")
