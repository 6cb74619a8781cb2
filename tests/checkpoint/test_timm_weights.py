"""Weights for networks of timm are loaded completely, or refused."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import Tensor, nn

from se_detection import create_backbone
from se_detection.checkpoint import timm_handler, weights_file
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.checkpoint.timm_weights import TimmAssumptions, assumptions_of
from se_detection.config.meta_device import Uninitialized
from se_detection.errors import UserError

from ..helpers import raises
from ..modeling.timm_families import trained_classifier

pytestmark = pytest.mark.slow

# timm joins the first two parts of the names of the second in its network for features.
NETWORKS = ("mobilenetv3_small_050", "rexnet_100")
BOTTOM_UP = "backbone.bottom_up."


def config(name: str = NETWORKS[0], **timm_keys: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 16
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.NAME = "StandardROIHeads", "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.TIMM.NAME = name
    for key, value in timm_keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def load(cfg: CfgNode, weights: Path | str, **options: bool) -> nn.Module:
    # New SE blocks are not in the file.
    with nullcontext() if cfg.MODEL.TIMM.INSERT_SE else Uninitialized():
        model = build_model(cfg)
    StrictCheckpointer(model, assumptions=assumptions_of(cfg), **options).load(str(weights))
    return model.eval()


def assert_loaded(backbone: nn.Module, weights: dict[str, Tensor]) -> None:
    """Each tensor of the backbone is the classifier's of the same name; tests of the maps compare these names."""
    state = {key: value for key, value in backbone.network.state_dict().items() if "num_batches" not in key}
    assert len(state) > 100
    assert all(torch.equal(value, weights[backbone.timm_names[key]]) for key, value in state.items())


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request) -> tuple[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    return request.param, trained_classifier(request.param)


@pytest.fixture(scope="module")
def mobilenet() -> dict[str, Tensor]:
    return trained_classifier(NETWORKS[0])


@pytest.fixture
def offline(monkeypatch, tmp_path, trained) -> None:
    """timm with these weights instead of downloads, and an empty cache."""
    _, weights = trained
    original = timm.create_model

    def create_model(asked: str, pretrained: bool = False, **options: object) -> nn.Module:
        model = original(asked, **options)
        if pretrained:
            model.load_state_dict(weights)
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(timm_handler, "_check_available", lambda name: None)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path / "cache"))


@pytest.mark.parametrize(("suffix", "norm"), [("pth", "FrozenBN"), ("safetensors", "BN")])
def test_a_file_in_timms_names(trained, tmp_path, suffix, norm, caplog) -> None:
    name, weights = trained
    path = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 3}, path)
    else:
        save_file(weights, path)
    assert_loaded(load(config(name, NORM=norm), path).backbone.bottom_up, weights)
    # Nothing in it says for which images it was trained.
    assert "does not record" in caplog.text


def test_weights_by_name(trained, offline) -> None:
    name, weights = trained
    assert_loaded(load(config(name), f"timm://{name}").backbone.bottom_up, weights)
    # detectron2's own checkpointer gets the names of the detector.
    with Uninitialized():
        model = build_model(config(name))
        backbone = create_backbone(f"timm/{name}", weights=f"timm://{name}", out_features=("res5",))
    DetectionCheckpointer(model).load(f"timm://{name}")
    assert_loaded(model.backbone.bottom_up, weights)
    assert_loaded(backbone, weights)
    assert list(backbone.output_shape()) == ["res5"]


def test_plain_resnets_of_timm_are_not_converted(monkeypatch, tmp_path) -> None:
    """For this project's ResNets, timm://resnet18 is a file in detectron2's names."""
    model = timm.create_model("resnet18")
    monkeypatch.setattr(timm_handler, "_check_available", lambda name: None)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    original = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, pretrained=False, **kw: model if pretrained else original(*args, **kw)
    )
    loaded = load(config("resnet18"), "timm://resnet18.a1_in1k")
    assert torch.equal(loaded.backbone.bottom_up.network.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    with raises("weights.partial_backbone", "tensors are missing"):
        with Uninitialized():
            plain = build_model(config("resnet18"))
        DetectionCheckpointer(plain).load("timm://resnet18.a1_in1k")


def without(weights: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: without(weights, "blocks.4.0.conv_pw.weight"), "1 of the"),
        (lambda weights: {key.replace("blocks.5.", "blocks.6."): value for key, value in weights.items()}, "blocks.5."),
        (lambda weights: {**weights, "blocks.9.weight": torch.ones(3)}, "1 are unexpected"),
        (lambda weights: {**weights, "conv_stem.weight": torch.ones(8, 3, 5, 5)}, "conv_stem.weight"),
        (lambda weights: {f"layer1.{key}": value for key, value in weights.items()}, "unexpected"),
    ],
    ids=["missing", "renamed", "unexpected", "reshaped", "other"],
)
def test_a_file_that_fits_in_part_is_refused(mobilenet, tmp_path, change, named) -> None:
    path = tmp_path / "model.pth"
    weights = dict(mobilenet)
    torch.save(change(weights), path)
    with raises("weights.partial_backbone", "network.", named):
        load(config(), path)


def test_allow_partial_backbone(mobilenet, tmp_path) -> None:
    path = tmp_path / "model.pth"
    weights = mobilenet
    torch.save(without(weights, "blocks.4.0.conv_pw.weight"), path)
    model = load(config(), path, allow_partial_backbone=True)
    assert torch.equal(model.backbone.bottom_up.network.conv_stem.weight, weights["conv_stem.weight"])


def test_a_checkpoint_of_another_network_or_input_is_refused(tmp_path) -> None:
    cfg = config()
    model, path = build_model(cfg), tmp_path / "model_final.pth"

    def checkpointer() -> StrictCheckpointer:
        return StrictCheckpointer(model, str(tmp_path), assumptions=assumptions_of(cfg))

    checkpointer().save("model_final")
    checkpointer().load(str(path))
    saved = torch.load(path, weights_only=True)
    assumptions = saved["assumptions"]
    for key, value, named in (
        ("network", "mobilenetv3_small_075", ["MODEL.TIMM.NAME", "mobilenetv3_small_075"]),
        ("pixel_mean", [127.5, 127.5, 127.5], ["MODEL.PIXEL_MEAN", "127.5"]),
        ("pixel_std", [127.5, 127.5, 127.5], ["MODEL.PIXEL_STD", "127.5"]),
        ("channel_order", "BGR", ["INPUT.FORMAT", "BGR"]),
        ("arguments", ["act_layer=relu"], ["MODEL.TIMM.KWARGS", "act_layer=relu"]),
    ):
        saved["assumptions"] = {**assumptions, key: value}
        torch.save(saved, path)
        with raises("weights.contradicts_config", *named):
            checkpointer().load(str(path))
    # timm's own weights do not know the arguments.
    saved["assumptions"] = {**assumptions, "arguments": ["drop_rate=0.1"], "source": "timm://mobilenetv3_small_050"}
    torch.save(saved, path)
    checkpointer().load(str(path))
    saved["assumptions"] = {key: value for key, value in assumptions.items() if key != "pixel_mean"}
    torch.save(saved, path)
    with raises("weights.bad_metadata", "pixel_mean"):
        checkpointer().load(str(path))


def test_weights_of_the_other_kind_are_refused(tmp_path) -> None:
    cfg = config()
    resnets = get_cfg()
    resnets.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    saved = {"model": {}, "assumptions": assumptions_of(resnets).to_dict()}
    path = tmp_path / "resnet.pth"
    torch.save(saved, path)
    with raises("weights.other_network", "MODEL.RESNETS", "timm://NAME"):
        load(cfg, path)


def test_inserted_se_needs_weights_or_starts_as_the_identity(tmp_path) -> None:
    weights = trained_classifier("regnetx_002")
    path = tmp_path / "model.pth"
    torch.save(weights, path)
    cfg = config("regnetx_002", INSERT_SE=True)
    with raises("weights.partial_backbone", ".se."):
        load(cfg, path)
    cfg.MODEL.SE.INIT = "identity"
    image = torch.randn(1, 3, 64, 64)
    maps = load(cfg, path).backbone.bottom_up(image)
    expected = load(config("regnetx_002"), path).backbone.bottom_up(image)
    assert all(torch.equal(maps[key], expected[key]) for key in expected)
    # A checkpoint with SE blocks is for the same SE blocks.
    model = build_model(cfg)
    StrictCheckpointer(model, str(tmp_path), assumptions=assumptions_of(cfg)).save("model_final")
    cfg.MODEL.SE.INIT = "default"
    with raises("weights.contradicts_config", "INIT identity", "INIT default"):
        load(cfg, tmp_path / "model_final.pth")
    with raises("weights.partial_backbone", "unexpected"):
        load(config("regnetx_002"), tmp_path / "model_final.pth")


def test_assumptions() -> None:
    cfg = config(KWARGS=["b=2", "a=1"])
    assumptions = assumptions_of(cfg)
    assert isinstance(assumptions, TimmAssumptions)
    content = json.loads(json.dumps(assumptions.to_dict()))
    assert TimmAssumptions.from_dict(content) == assumptions
    assert assumptions.contradictions(assumptions) == []
    assert "MODEL.TIMM.NAME mobilenetv3_small_050" in str(assumptions)
    cfg.MODEL.BACKBONE.NAME = "build_dla_fpn_backbone"
    assert assumptions_of(cfg) is None


def test_names_that_timm_does_not_have() -> None:
    for name, code in (("vgg16/../x", "weights.not_found"), ("no_such_network", "weights.not_found")):
        with raises(code, name):
            timm_handler.original_file(name)
    with pytest.raises(UserError):
        load(config(), "timm://mobilenetv3_small_050.a9_in1k")
