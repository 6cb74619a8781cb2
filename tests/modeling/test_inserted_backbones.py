"""Backbones of timm with inserted SE (`MODEL.TIMM.INSERT_SE`), next to the same backbones without it."""

import pytest
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.checkpoint.timm_weights import assumptions_of
from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.squeeze_excitation import SqueezeExcitation

from ..helpers import raises, randomize_norms

pytestmark = pytest.mark.slow

NETWORKS = [
    ("resnet18", "BN"),
    ("mobilenetv1_100", "FrozenBN"),
    ("regnetx_002", "FrozenBN"),
]
IDENTITY = ["MODEL.TIMM.INSERT_SE", "True", "MODEL.SE.INIT", "identity", "MODEL.SE.REDUCTION", "8"]


class Detector(nn.Module):
    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)


def config(name: str, *overrides: str) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.merge_from_list(overrides)
    return cfg


def load(detector: nn.Module, file, cfg: CfgNode) -> None:
    StrictCheckpointer(detector, assumptions=assumptions_of(cfg)).load(str(file))


def bottom_up(detector: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return detector.backbone.bottom_up(x)


@pytest.mark.parametrize(("name", "norm"), NETWORKS)
def test_plain_weights_give_the_same_maps(name, norm, tmp_path) -> None:
    torch.save({"model": randomize_norms(timm.create_model(name)).state_dict()}, tmp_path / "timm.pth")
    options = ["MODEL.TIMM.NORM", norm, "MODEL.TIMM.FREEZE_AT", "0"]
    plain_cfg, cfg = config(name, *options), config(name, *options, *IDENTITY)
    # The identity start is set by the initialization; the others are filled by the file, or refuse it.
    gated = Detector(cfg)
    ordinary_cfg = config(name, *options, *IDENTITY, "MODEL.SE.INIT", "default")
    with Uninitialized():
        plain, again, ordinary = Detector(plain_cfg), Detector(cfg), Detector(ordinary_cfg)
    load(plain, tmp_path / "timm.pth", plain_cfg)
    load(gated, tmp_path / "timm.pth", cfg)
    x = torch.randn(2, 3, 97, 131)
    for training in (False, True):
        for ours, theirs in zip(
            bottom_up(gated.train(training), x).values(), bottom_up(plain.train(training), x).values(), strict=True
        ):
            assert torch.equal(ours, theirs)

    # Its own checkpoint is complete, and not for ordinary gates.
    gates = [module for module in gated.modules() if isinstance(module, SqueezeExcitation)]
    for gate in gates:
        nn.init.normal_(gate.fc2.weight, std=0.1)
    StrictCheckpointer(gated, str(tmp_path), assumptions=assumptions_of(cfg)).save("own")
    load(again, tmp_path / "own.pth", cfg)
    saved = gated.state_dict()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, saved[key]), key
    with raises("weights.contradicts_config", "MODEL.SE", "identity"):
        load(ordinary, tmp_path / "own.pth", ordinary_cfg)
    with raises("weights.partial_backbone", "fc1.weight"):
        load(ordinary, tmp_path / "timm.pth", ordinary_cfg)


def test_frozen_parts_have_frozen_gates() -> None:
    backbone = build_backbone(config("mobilenetv1_100", *IDENTITY, "MODEL.TIMM.FREEZE_AT", "3"))
    trained = {
        name: any(parameter.requires_grad for parameter in module.parameters())
        for name, module in backbone.named_modules()
        if isinstance(module, SqueezeExcitation)
    }
    assert len(trained) == 13
    assert [trained[name] for name in sorted(trained)] == [False] * 5 + [True] * 8


def test_gates_on_fpn_levels_are_recorded() -> None:
    for key in ("FPN", "ROI"):
        overrides = [f"MODEL.SE.{key}", "True", "MODEL.ROI_HEADS.NAME", "SEStandardROIHeads"]
        file = assumptions_of(config("resnet18", *overrides, "MODEL.SE.INIT", "identity"))
        other = assumptions_of(config("resnet18", *overrides))
        (difference,) = file.contradictions(other)
        assert "INIT identity" in difference
