"""Partial loads with detectron2's own checkpointer, which its tools use."""

import copy
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from ..helpers import raises


class Detector(nn.Module):
    """A backbone under its name in a detector, and a layer outside the backbone."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.head = nn.Linear(2, 2)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


@pytest.fixture
def detector(cfg) -> Detector:
    return Detector(cfg)


def load(detector: nn.Module, weights: dict[str, torch.Tensor], folder, **others: object) -> None:
    torch.save({"model": weights, **others}, folder / "weights.pth")
    DetectionCheckpointer(detector).load(str(folder / "weights.pth"))


def test_a_file_with_only_a_backbone_loads(cfg, detector, tmp_path) -> None:
    weights = Detector(cfg).backbone.bottom_up.state_dict()
    load(detector, weights, tmp_path, matching_heuristics=True)
    for key, tensor in detector.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, weights[key])


def without(part: str):
    return lambda weights: {key: tensor for key, tensor in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (without("res3.0.se.fc1.weight"), "weights.partial_backbone", ["1 of the", "res3.0.se.fc1.weight"]),
        (without(".res4."), "weights.partial_backbone", ["bottom_up.res4.0"]),
        (without(".bottom_up."), "weights.partial_backbone", ["stem.conv1"]),
        (without(".se."), "weights.plain_backbone", ["plain"]),
        (
            lambda weights: weights | {"backbone.bottom_up.stem.conv1.weight": torch.ones(64, 3, 3, 3)},
            "weights.partial_backbone",
            ["1 of the", "stem.conv1.weight"],
        ),
    ],
)
def test_a_part_of_a_backbone_is_refused(detector, tmp_path, change, code, named) -> None:
    with raises(code, *named):
        load(detector, change(detector.state_dict()), tmp_path)


def test_other_layers_are_not_checked(detector) -> None:
    weights = {key: value for key, value in detector.state_dict().items() if ".bottom_up." in key}
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    incompatible = detector.load_state_dict(weights, strict=False)
    assert "head.weight" in incompatible.missing_keys


def test_copies_keep_the_check(detector) -> None:
    half = {key: value for key, value in detector.state_dict().items() if ".res5." not in key}
    for copied in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        copied.load_state_dict(detector.state_dict())
        with raises("weights.partial_backbone", "res5"):
            copied.load_state_dict(half, strict=False)


def test_parallel_wrappers_and_averages(cfg, detector) -> None:
    wrapped = nn.DataParallel(detector)
    wrapped.load_state_dict(wrapped.state_dict())
    average = torch.optim.swa_utils.AveragedModel(detector)
    average.update_parameters(Detector(cfg))
    average.load_state_dict(average.state_dict())
