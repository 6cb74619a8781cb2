import pytest
from detectron2.config import CfgNode, get_cfg
from yacs.config import CfgNode as YacsNode

from se_detection import SEConfig, add_se_config
from se_detection.config.se_config import STAGES

from ..helpers import raises


def without_our_keys() -> CfgNode:
    """detectron2's own defaults."""
    cfg = get_cfg()
    del cfg.MODEL["SE"], cfg.MODEL.RESNETS["STEM_TYPE"], cfg.SOLVER.AMP["BF16"], cfg.INPUT["KEYPOINT_FLIP_MAP"]
    for key in ("CHECKPOINTS_TO_KEEP", "BEST_METRIC", "EMA_DECAY", "SKIP_NON_FINITE", "CHANNELS_LAST"):
        del cfg.SOLVER[key]
    for key in ("BACKBONE_FREEZE_ITERS", "BACKBONE_MULTIPLIER", "OPTIMIZER", "BETAS"):
        del cfg.SOLVER[key]
    for key in ("LARGE_SCALE_JITTER", "RANDOM_ERASING", "ALBUMENTATIONS"):
        del cfg.INPUT[key]
    return cfg


def test_a_config_without_our_keys_gets_all_of_them() -> None:
    cfg, other = without_our_keys(), without_our_keys()
    add_se_config(cfg)
    add_se_config(other)
    assert cfg == get_cfg()
    assert cfg.MODEL.SE.REDUCTION == 16
    assert SEConfig.from_cfg(cfg) == SEConfig(stages=list(STAGES), reduction_per_stage=[])
    # Configs do not share lists.
    cfg.MODEL.SE.STAGES.append("res5")
    assert list(STAGES) == other.MODEL.SE.STAGES == get_cfg().MODEL.SE.STAGES


@pytest.mark.parametrize("node", [CfgNode, YacsNode])
def test_a_partial_node_is_completed(node) -> None:
    cfg = node({"MODEL": {"SE": {"REDUCTION": 4, "STAGES": ["res5"]}}})
    add_se_config(cfg)
    assert {**get_cfg().MODEL.SE, "REDUCTION": 4, "STAGES": ["res5"]} == cfg.MODEL.SE
    assert cfg.MODEL.RESNETS.STEM_TYPE == "basic"
    assert cfg.SOLVER.AMP.BF16 is False
    assert SEConfig.from_cfg(cfg) == SEConfig(reduction=4, stages=["res5"], reduction_per_stage=[])


def test_a_frozen_config_is_not_changed() -> None:
    """yacs refuses an assignment to a frozen node."""
    complete, partial = get_cfg(), CfgNode({"MODEL": {"SE": {"REDUCTION": 4}}})
    complete.freeze()
    partial.freeze()
    add_se_config(complete)
    assert complete == get_cfg()
    with pytest.raises(AttributeError, match="immutable"):
        add_se_config(partial)
    assert partial == CfgNode({"MODEL": {"SE": {"REDUCTION": 4}}})


def test_reduction_in_a_stage() -> None:
    se = SEConfig(reduction=2, reduction_per_stage=[4, 1, 8, 32], stages=["res2", "res4", "res5"])
    assert [se.reduction_in(stage) for stage in STAGES] == [4, None, 8, 32]
    assert SEConfig(reduction=2, stages=["res3"]).reduction_in("res3") == 2


def test_the_identity_needs_gates_that_can_start_at_1() -> None:
    assert SEConfig(init="identity", gate="hardsigmoid").init == "identity"
    with raises("config.unknown_choice", "MODEL.SE.GATE", "relu", "sigmoid, hardsigmoid"):
        SEConfig(init="identity", gate="relu")
    with raises("config.bad_value", "MODEL.SE.GATE_BIAS", 4):
        SEConfig(init="identity", gate_bias=4.0)
    with raises("config.unknown_choice", "MODEL.SE.INIT", "zero"):
        SEConfig(init="zero")
