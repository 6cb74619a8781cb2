import pytest
from detectron2.config import CfgNode, get_cfg

from se_detection import SEConfig, UserError, add_se_config
from se_detection.config.se_config import STAGES


def test_import_alone_puts_the_node_into_detectron2s_defaults() -> None:
    cfg = get_cfg()
    assert cfg.MODEL.SE.REDUCTION == 16
    assert SEConfig.from_cfg(cfg) == SEConfig(stages=list(STAGES), reduction_per_stage=[])


def test_adding_twice_keeps_what_was_set() -> None:
    cfg = get_cfg()
    cfg.MODEL.SE.REDUCTION = 8
    add_se_config(cfg)
    assert cfg.MODEL.SE.REDUCTION == 8


def test_a_config_without_the_node_gets_it() -> None:
    cfg = CfgNode({"MODEL": {}})
    add_se_config(cfg)
    assert cfg.MODEL == {"SE": get_cfg().MODEL.SE}


def test_the_node_survives_a_round_trip_through_yaml(tmp_path) -> None:
    cfg = get_cfg()
    cfg.MODEL.SE.STAGES = ["res3"]
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(path))
    assert again.MODEL.SE == cfg.MODEL.SE


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("res2", 4), ("res3", None), ("res4", 8), ("res5", 32)],
    ids=["res2", "res3", "res4", "res5"],
)
def test_reduction_in_a_stage(stage, expected) -> None:
    se = SEConfig(reduction=2, reduction_per_stage=[4, 1, 8, 32], stages=["res2", "res4", "res5"])
    assert se.reduction_in(stage) == expected


def test_errors_are_value_errors_for_callers_that_know_nothing_of_ours() -> None:
    assert issubclass(UserError, ValueError)
