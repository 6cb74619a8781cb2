from dataclasses import replace

import pytest
import timm
import torch
from detectron2.config import CfgNode

from se_detection import model_zoo
from se_detection.checkpoint.assumptions import WeightsAssumptions, contradictions
from se_detection.checkpoint.converted import Converted
from se_detection.checkpoint.timm_handler import PREFIX, source_of
from se_detection.config.meta_device import Uninitialized

from ..helpers import raises

CONFIG = "Paper/faster_rcnn_SE_R_50_FPN_2x"


def assumptions_of_timm(name: str) -> WeightsAssumptions:
    """The assumptions that `timm://` weights get; they need only shapes and metadata."""
    metadata = timm.get_pretrained_cfg(name)
    with torch.device("meta"), Uninitialized():
        weights = timm.create_model(name.split(".")[0]).state_dict()
    pixels = {f"pixel_{kind}": tuple(255 * value for value in getattr(metadata, kind)) for kind in ("mean", "std")}
    return Converted.from_state_dict(weights, source_of(name), sha256="", **pixels).assumptions


def from_cfg(cfg: CfgNode) -> WeightsAssumptions:
    assumptions = WeightsAssumptions.from_cfg(cfg)
    assert assumptions is not None
    return assumptions


@pytest.mark.slow
def test_every_config_matches_its_weights() -> None:
    others = (".py", "Any-Network/")  # lazy configs, and networks of timm
    configs = {name: model_zoo.get_config(name) for name in model_zoo.names() if not any(map(name.count, others))}
    weights: dict[str, list[WeightsAssumptions]] = {}
    for cfg in configs.values():
        if cfg.MODEL.WEIGHTS.startswith(PREFIX):
            weights.setdefault(cfg.MODEL.WEIGHTS, []).append(from_cfg(cfg))
    assert len(weights) >= 5
    for name, of_configs in weights.items():
        expected = assumptions_of_timm(name.removeprefix(PREFIX))
        for assumptions in of_configs:
            assert contradictions(expected, assumptions) == [], name


@pytest.fixture(scope="module")
def legacy() -> WeightsAssumptions:
    return assumptions_of_timm("legacy_seresnet50.in1k")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RESNETS.DEPTH", 101, "MODEL.RESNETS.DEPTH is 50 in the file and 101 in the config"),
        ("MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.NUM_GROUPS is 1 in the file and 32 in the config"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.WIDTH_PER_GROUP is 64 in the file and 4 in the config"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.STRIDE_IN_1X1 is True in the file and False in the "),
        ("MODEL.RESNETS.STEM_TYPE", "basic", "MODEL.RESNETS.STEM_TYPE is caffe in the file and basic in the config"),
        ("MODEL.SE.REDUCTION", 8, "res5 is [16, 16, 16, 16] in the file and [8, 8, 8, 8] in the config"),
        ("MODEL.SE.REDUCTION_PER_STAGE", [16, 16, 16, 4], "[16, 16, 16, 16] in the file and [16, 16, 16, 4] in"),
        ("MODEL.SE.STAGES", ["res2", "res3"], "[16, 16, 16, 16] in the file and [16, 16, 0, 0] in the config"),
        ("MODEL.SE.POSITION", "identity", "MODEL.SE.POSITION is standard in the file and identity in the config"),
        ("MODEL.SE.SQUEEZE", "max", "MODEL.SE.SQUEEZE is avg in the file and max in the config"),
        ("MODEL.SE.GATE", "tanh", "MODEL.SE.GATE is sigmoid in the file and tanh in the config"),
        ("MODEL.SE.BIAS", False, "MODEL.SE.BIAS is True in the file and False in the config"),
        ("MODEL.SE.INIT", "identity", "MODEL.SE.INIT is default in the file and identity in the config"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], "[123.675, 116.28, 103.53] in the file and [103.53, 116.28"),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "MODEL.PIXEL_STD is [58.395, 57.12, 57.375] in the file and [1, 1, 1] in"),
        ("INPUT.FORMAT", "BGR", "INPUT.FORMAT is RGB in the file and BGR in the config"),
    ],
)
def test_each_contradiction_names_both_sides(legacy, key, value, message) -> None:
    cfg = model_zoo.get_config(CONFIG)
    cfg.merge_from_list([key, value])
    (difference,) = contradictions(legacy, from_cfg(cfg))
    assert message in difference
    visible = any(part in key for part in ("DEPTH", "GROUP", "REDUCTION", "STAGES", "BIAS"))
    assert (contradictions(legacy, from_cfg(cfg), ignore_shapes=True) == []) == visible


def test_plain_and_se_backbones_do_not_contradict() -> None:
    """The names of their layers differ, which has a separate message."""
    plain, se = (from_cfg(model_zoo.get_config(f"Toy/faster_rcnn_{kind}_50_FPN")) for kind in ("R", "SE_R"))
    assert (plain.has_se, se.has_se) == (False, True)
    assert contradictions(plain, se) == contradictions(se, plain) == []


def test_plain_backbones_ignore_the_stem_type() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_R_50_FPN")
    cfg.MODEL.RESNETS.STEM_TYPE = "caffe"
    assert from_cfg(cfg).stem == "basic"


def test_basic_blocks_have_no_stride_in_1x1() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    assert not from_cfg(cfg).stride_in_1x1


def test_other_backbones_have_no_assumptions() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_R_18_FPN")
    cfg.MODEL.BACKBONE.NAME = "build_mobilenet_backbone"
    assert WeightsAssumptions.from_cfg(cfg) is None


def test_to_dict_and_from_dict(legacy) -> None:
    content = legacy.to_dict()
    assert WeightsAssumptions.from_dict(content) == legacy
    assert content["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])
    for broken in ({}, {**content, "stem_2": 1}, [1], "RGB"):
        with raises("weights.bad_metadata", "channel_order, depth"):
            WeightsAssumptions.from_dict(broken)


def test_older_files_have_the_default_initialization(legacy) -> None:
    for assumptions in (legacy, assumptions_of_timm("resnet34.a1_in1k")):
        content = assumptions.to_dict()
        assert content.pop("se_init") == ("default" if assumptions.has_se else "")
        assert WeightsAssumptions.from_dict(content) == assumptions


def test_mean_and_std_are_from_timms_metadata() -> None:
    """One tag of timm's resnet34 was trained with a mean of 0.5; its tensors don't show this."""
    assert assumptions_of_timm("resnet34.ra4_e3600_r224_in1k").pixel_mean == (127.5, 127.5, 127.5)
    assert assumptions_of_timm("resnet34.a1_in1k").pixel_mean == pytest.approx((123.675, 116.28, 103.53))


@pytest.mark.parametrize(("mean", "differences"), [((123.68, 116.28, 103.53), 0), ((123.675, 116.779, 103.53), 1)])
def test_means_may_be_rounded_but_not_others(mean, differences) -> None:
    """ImageNet's mean to two places is the same mean, VGG's green channel is not."""
    file = assumptions_of_timm("resnet34.a1_in1k")
    assert len(contradictions(file, replace(file, pixel_mean=mean))) == differences
