"""Small detectors, and weights files that fit them completely, in part, or not."""

import hashlib
import json
import logging
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from safetensors.torch import save_file
from torch import Tensor, nn

from se_detection import model_zoo
from se_detection.checkpoint.assumptions import WeightsAssumptions
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.converted import Converted
from se_detection.config.meta_device import Uninitialized

from ..helpers import raises


def config(kind: str = "SE_R", **resnets: object) -> CfgNode:
    cfg = model_zoo.get_config(f"Toy/faster_rcnn_{kind}_18_FPN")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    # As the networks of the weights.
    cfg.MODEL.SE.INIT = "default"
    # timm's seresnet18 has 8 hidden channels in res2, a multiple of 8.
    cfg.MODEL.SE.REDUCTION_PER_STAGE = [8, 16, 16, 16]
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def checkpointer(cfg: CfgNode, folder: Path, model: nn.Module | None = None, **options: object) -> StrictCheckpointer:
    assumptions = WeightsAssumptions.from_cfg(cfg)
    return StrictCheckpointer(model or build_model(cfg), str(folder), assumptions=assumptions, **options)


def load(
    cfg: CfgNode, checkpoint: dict[str, object], folder: Path, model: nn.Module | None = None, **options: object
) -> nn.Module:
    torch.save(checkpoint, folder / "weights.pth")
    if model is None:
        with Uninitialized():
            model = build_model(cfg)
    loader = checkpointer(cfg, folder, model, **options)
    loader.load(str(folder / "weights.pth"))
    return loader.model


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    """For files that are refused."""
    return build_model(config())


@pytest.fixture(scope="module")
def checkpoint(module_path) -> Path:
    """The checkpoint of a run."""
    checkpointer(config(), module_path).save("model_final", iteration=3)
    return module_path / "model_final.pth"


@pytest.fixture
def saved(checkpoint) -> dict[str, object]:
    return torch.load(checkpoint, weights_only=True)


@pytest.fixture(scope="module")
def classifier() -> Converted:
    return Converted.from_state_dict(timm.create_model("seresnet18").state_dict(), "timm", sha256="")


def assert_backbone(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for key, tensor in model.backbone.bottom_up.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights[key]), key


def test_a_checkpoint_of_a_run_loads(checkpoint, saved, tmp_path) -> None:
    assert (checkpoint.parent / "last_checkpoint").read_text() == "model_final.pth"
    assert saved["iteration"] == 3
    assert saved["assumptions"]["channel_order"] == "BGR"
    assert saved["assumptions"]["se_reduction"] == [8, 16, 16, 16]
    model = load(config(), saved, tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["model"][key]), key


def test_a_wrapped_detector_or_its_backbone_loads(saved, tmp_path) -> None:
    backbone = {key: tensor for key, tensor in saved["model"].items() if key.startswith("backbone.bottom_up.")}
    for weights in (saved["model"], backbone):
        wrapped = {f"module.model._orig_mod.{key}": tensor for key, tensor in weights.items()}
        model = load(config(), {"model_state_dict": wrapped}, tmp_path)
        state = model.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())


def resume_in_two_processes(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (rank + 1))
    loader = StrictCheckpointer(model, str(folder), optimizer=optimizer, save_to_disk=rank == 0)
    loader.save("model_0000001")
    expected = model.weight.detach().clone()
    dist.broadcast(expected, 0)
    with torch.no_grad():
        model.weight.zero_()
    loader.resume(folder / "model_0000001.pth" if rank == 0 else Path("/nowhere/model_0000001.pth"))
    assert torch.equal(model.weight, expected)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.slow
def test_machines_without_the_checkpoint_get_it_from_the_first(tmp_path) -> None:
    torch.multiprocessing.start_processes(resume_in_two_processes, (tmp_path,), nprocs=2, start_method="fork")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_fine_tuning_from_a_converted_classifier(classifier, tmp_path, suffix, caplog) -> None:
    path = tmp_path / f"weights.{suffix}"
    classifier.save(path)
    cfg = config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    loader = checkpointer(cfg, tmp_path)
    with caplog.at_level(logging.WARNING):
        loader.load(str(path))
    assert_backbone(loader.model, classifier.weights)
    # The classifier's last layer is not used; FPN and heads are missing in any such file.
    (message,) = caplog.messages
    assert "linear.{bias, weight}" in message
    with raises("weights.partial_heads"):
        checkpointer(cfg, tmp_path, loader.model, needs_heads=True).load(str(path))
    cfg.INPUT.FORMAT = "BGR"
    with raises("weights.contradicts_config", "INPUT.FORMAT is RGB in the file and BGR in the config"):
        checkpointer(cfg, tmp_path, loader.model).load(str(path))


def drop(*patterns: str) -> object:
    def change(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if any(re.search(pattern, key) for pattern in patterns)]:
            del weights[key]

    return change


def rename(old: str, new: str) -> object:
    def change(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if old in key]:
            weights[key.replace(old, new)] = weights.pop(key)

    return change


def reshape(key: str) -> object:
    return lambda weights: weights.update({key: torch.ones(3, 2)})


BOTTOM_UP = "backbone.bottom_up"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (drop(r"res3\.0\.conv1\.weight"), "weights.partial_backbone", ["1 of", f"{BOTTOM_UP}.res3.0.conv1.weight"]),
        (drop(r"res4\.1\.conv2\.norm\.running_mean"), "weights.partial_backbone", [f"{BOTTOM_UP}.res4.1.conv2.norm"]),
        (reshape(f"{BOTTOM_UP}.res3.0.conv1.weight"), "weights.partial_backbone", ["1 of", "res3.0.conv1.weight"]),
        (rename(".res5.", ".res6."), "weights.partial_backbone", [f"{BOTTOM_UP}.res5.0.shortcut.weight", "0 are unex"]),
        (rename("bottom_up.res5.1.", "bottom_up.res5.2."), "weights.partial_backbone", ["14 of", "14 are unexpected"]),
        (drop(r"\.se\."), "weights.partial_backbone", ["32 of", "plain and the config's has SE", "timm://"]),
        (drop(r"box_head\.fc1"), "weights.partial_heads", ["2 of", "roi_heads.box_head.fc1.weight"]),
        (drop("fpn_lateral3"), "weights.partial_heads", ["2 of", "backbone.fpn_lateral3"]),
        (reshape("roi_heads.box_head.fc1.weight"), "weights.wrong_shape", ["box_head.fc1", "(3, 2)", "(8, 392)"]),
        (reshape("roi_heads.box_predictor.cls_score.bias"), "weights.wrong_shape", ["--reset-predictor"]),
    ],
)
def test_a_file_that_fits_in_part_is_refused(saved, detector, tmp_path, change, code, named) -> None:
    change(saved["model"])
    with raises(code, *named):
        load(config(), saved, tmp_path, model=detector)


def test_reset_predictor(saved, tmp_path) -> None:
    drop(r"cls_score")(saved["model"])
    reshape("roi_heads.box_predictor.bbox_pred.weight")(saved["model"])
    model = load(config(), saved, tmp_path, reset_predictor=True)
    assert torch.equal(model.roi_heads.box_head.fc1.weight, saved["model"]["roi_heads.box_head.fc1.weight"])


def test_a_resumed_run_keeps_its_predictor(saved, tmp_path) -> None:
    """One command with --reset-predictor --resume starts a run and resumes it."""
    torch.save(saved, tmp_path / "model_0000007.pth")
    with Uninitialized():
        loader = checkpointer(config(), tmp_path, reset_predictor=True)
    loader.resume(tmp_path / "model_0000007.pth")
    for key, tensor in loader.model.state_dict().items():
        assert torch.equal(tensor, saved["model"][key]), key


def test_a_converted_backbone_that_fits_in_part_is_refused(classifier, detector, tmp_path) -> None:
    """detectron2's name matching skips tensors of another shape."""
    weights = dict(classifier.weights)
    weights["res3.0.conv1.weight"] = torch.ones(3, 2)
    del weights["res2.0.se.fc1.bias"]
    with raises("weights.partial_backbone", "2 of", f"{BOTTOM_UP}.res2.0.se.fc1.bias"):
        load(config(), {"model": weights, "matching_heuristics": True}, tmp_path, model=detector)


def test_se_weights_in_a_plain_config_are_refused(saved, tmp_path) -> None:
    with raises("weights.partial_backbone", "32 are unexpected", "has SE where the config's has none"):
        load(config("R"), saved, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.SE.POSITION", "identity"), ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]), ("MODEL.RESNETS.STEM_TYPE", "caffe")],
)
def test_metadata_that_contradicts_the_config_is_refused(saved, detector, tmp_path, key, value) -> None:
    cfg = config()
    cfg.merge_from_list([key, value])
    with raises("weights.contradicts_config", key):
        load(cfg, saved, tmp_path, model=detector, allow_partial_backbone=True)


def test_a_file_without_metadata_loads_with_one_warning(saved, tmp_path, caplog) -> None:
    del saved["assumptions"]
    with caplog.at_level(logging.WARNING):
        load(config(), saved, tmp_path)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "does not record its network and its input" in warning
    for part in ("MODEL.RESNETS.STEM_TYPE basic", "INPUT.FORMAT BGR", "MODEL.PIXEL_MEAN [103.53, 116.28, 123.675]"):
        assert part in warning


@pytest.mark.parametrize(
    ("name", "source"), [("seresnet18", "timm"), ("resnet18", "timm"), ("legacy_seresnet50", "timm-legacy")]
)
def test_files_of_other_projects_are_refused_with_the_command_that_converts_them(
    detector, tmp_path, name, source
) -> None:
    with raises("weights.other_project", f"se-det convert FILE --source {source} "):
        load(config(), timm.create_model(name).state_dict(), tmp_path, model=detector)


def test_a_bare_backbone_needs_no_prefix(classifier, tmp_path) -> None:
    assert_backbone(load(config(), classifier.weights, tmp_path), classifier.weights)


def test_allow_partial_backbone(saved, tmp_path, caplog) -> None:
    """Tensors that fit are loaded, the others stay as initialized."""
    weights = saved["model"]
    drop(r"\.se\.")(weights)
    reshape("backbone.bottom_up.res3.0.conv1.weight")(weights)
    weights["backbone.bottom_up.res5.2.conv1.weight"] = torch.ones(1)
    loader = checkpointer(config(), tmp_path, allow_partial_backbone=True)
    before = {key: tensor.clone() for key, tensor in loader.model.state_dict().items()}
    torch.save(saved, tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING):
        loader.load(str(tmp_path / "weights.pth"))
    assert "33 of the backbone's" in caplog.text
    for key, tensor in loader.model.state_dict().items():
        fits = ".se." not in key and key != "backbone.bottom_up.res3.0.conv1.weight"
        assert torch.equal(tensor, weights[key] if fits else before[key]), key


def test_the_res5_in_c4_heads_counts_as_backbone(classifier, tmp_path) -> None:
    cfg = config(OUT_FEATURES=["res4"])
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_backbone"
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
    cfg.MODEL.ROI_HEADS.NAME = "SERes5ROIHeads"
    checkpoint = {"model": dict(classifier.weights), "matching_heuristics": True}
    model = load(cfg, checkpoint, tmp_path)
    for key, tensor in model.roi_heads.res5.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(tensor, classifier.weights[f"res5.{key}"])
    del checkpoint["model"]["res5.1.se.fc2.weight"]
    with raises("weights.partial_backbone", "1 of", "roi_heads.res5.1.se.fc2.weight"):
        load(cfg, checkpoint, tmp_path)


def write_detectron_file(state_dict: dict[str, Tensor], path: Path) -> None:
    """Writes a file like the MSRA backbones in detectron2's zoo: Caffe2's names, BN folded into scale and bias."""
    blobs = {}
    for key, tensor in state_dict.items():
        if "running" in key or "num_batches" in key:
            continue
        name = key.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1").replace(".norm", "_bn")
        for ours, theirs in ((".shortcut", "_branch1"), (".conv1", "_branch2a"), (".conv2", "_branch2b")):
            name = name.replace(ours, theirs)
        name = re.sub(r"bn\.weight$", "bn_s", re.sub(r"bn\.bias$", "bn_b", name))
        blobs[re.sub(r"\.weight$", "_w", name).replace(".", "_")] = tensor.numpy()
    path.write_bytes(pickle.dumps(blobs, 2))


@pytest.mark.slow
def test_detectrons_backbones_load_with_frozen_bn_only(tmp_path) -> None:
    cfg = config("R", NORM="FrozenBN")
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.running_var.fill_(1)
    write_detectron_file(backbone.state_dict(), tmp_path / "R-18.pkl")
    loader = checkpointer(cfg, tmp_path)
    loader.load(str(tmp_path / "R-18.pkl"))
    assert_backbone(loader.model, backbone.state_dict())
    # BN would apply the folded scales to normalized features.
    with raises("weights.partial_backbone", f"{BOTTOM_UP}.stem.conv1.norm.running_mean"):
        checkpointer(config("R", NORM="BN"), tmp_path).load(str(tmp_path / "R-18.pkl"))


def test_broken_metadata_is_refused(saved, detector, tmp_path) -> None:
    saved["assumptions"] = {"stem": "caffe"}
    with raises("weights.bad_metadata"):
        load(config(), saved, tmp_path, model=detector)


def test_other_backbones_are_loaded_as_detectron2_does(tmp_path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torchvision.ops.MLP(2, [3, 3])
            self.head = nn.Linear(1, 1)

    torch.save({"model": {"head.bias": torch.ones(1)}}, tmp_path / "weights.pth")
    model = Other()
    StrictCheckpointer(model).load(str(tmp_path / "weights.pth"))
    assert model.head.bias == 1


def test_saving_replaces_no_file_and_checks_the_suffix(classifier, tmp_path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"mine")
    with raises("output.exists", path):
        classifier.save(path)
    assert path.read_bytes() == b"mine"
    with raises("output.suffix", ".pth"):
        classifier.save(tmp_path / "weights.bin")


def test_the_assumptions_have_the_sha256_of_the_source(tmp_path) -> None:
    source = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), source)
    converted = convert_input(str(source), "timm")
    converted.save(tmp_path / "out.pth")
    converted.save(tmp_path / "out.safetensors")
    assumptions = torch.load(tmp_path / "out.pth", weights_only=True)["assumptions"]
    header = (tmp_path / "out.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["assumptions"]) == assumptions
    assert assumptions["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert assumptions["source"] == "timm"
