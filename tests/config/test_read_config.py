"""Configs of any source end in a one-line error, or are what detectron2 reads."""

import os
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from se_detection import model_zoo
from se_detection.config.buildable import check_backbone, check_model
from se_detection.config.read_config import read_config
from se_detection.config.yaml_file import read_yaml

from ..helpers import raises

SE = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("MODEL: [1, 2", "config.not_yaml", ""),
        ("[" * 500, "config.not_yaml", ""),
        ("a: " + "9" * 5000, "config.not_yaml", ""),
        ("a: 2020-13-45", "config.not_yaml", ""),
        ("\0", "config.not_yaml", ""),
        ("{a: &a [*a]}", "config.not_yaml", "aliases"),
        ("a" * 300_000, "config.too_large", "262144"),
        ("MODEL: !!python/object/apply:os.mkdir [made]", "config.runs_code", "python/object/apply"),
        ("!!python/object/new:os.system ['mkdir made']", "config.runs_code", "python/object/new"),
        ("!!python/name:os.mkdir ''", "config.runs_code", "python/name"),
        ("!!python/module:antigravity ''", "config.runs_code", "python/module"),
        ("? {a: b}\n: c", "config.runs_code", "unhashable"),
    ],
)
def test_yaml_with_more_than_values_is_refused(tmp_path, monkeypatch, text, code, named) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    for read in (read_yaml, read_config):
        with raises(code, "config.yaml", named):
            read("config.yaml")
    assert os.listdir() == ["config.yaml"]


def test_aliases_are_counted_after_they_are_expanded(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    for levels, is_small in ((3, True), (5, False), (30, False)):
        lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels + 1))]
        path.write_text("\n".join(lines))
        if is_small:
            assert len(read_yaml(path)["a2"][8]) == 9
        else:
            with raises("config.not_yaml", "100000 values"):
                read_yaml(path)


def test_detectron2_runs_code_from_a_config(tmp_path, monkeypatch) -> None:
    """The danger: without `allow_unsafe=False`, detectron2 runs the code of a config."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("SEED: !!python/object/apply:os.mkdir [made]")
    get_cfg().merge_from_file("config.yaml")
    assert Path("made").is_dir()


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("MODEL:\n  SE:\n    REDUCTIO: 8", "config.unknown_key", "MODEL.SE.REDUCTIO; did you mean MODEL.SE.REDUCTION?"),
        ("QQQ: 8", "config.unknown_key", "docs/CONFIG.md"),
        ("MODEL:\n  SE:\n    REDUCTION: many", "config.bad_value", "MODEL.SE.REDUCTION 'many': this key takes a whole"),
        ("SOLVER: {STEPS: 5}", "config.bad_value", "SOLVER.STEPS '5': this key takes a list"),
        ("just words", "config.no_keys", "config.yaml"),
        ("", "config.no_keys", "config.yaml"),
        ("_BASE_: none.yaml", "config.not_found", "none.yaml"),
        ("_BASE_: .", "config.not_found", "."),
        ("_BASE_: pipe", "config.not_found", "pipe"),
        ("_BASE_: config.yaml", "config.bad_base", "its own _BASE_"),
        ("_BASE_: sub/../config.yaml", "config.bad_base", "100"),
        ("_BASE_: 5", "config.bad_base", "5"),
        ("_BASE_: [[a.yaml]]", "config.bad_base", "['a.yaml']"),
        ("_BASE_: https://localhost:1/a.yaml", "config.unreadable", "https://localhost:1/a.yaml"),
    ],
)
def test_files_that_are_not_configs_are_refused(tmp_path, text, code, named) -> None:
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "config.yaml").write_text(text)
    with raises(code, named):
        read_config(str(tmp_path / "config.yaml"))


def test_lazy_configs_are_refused() -> None:
    with raises("config.lazy", "tools/lazyconfig_train_net.py"):
        read_config(model_zoo.get_config_file("lazy/COCO-Detection/fcos_SE_R_50_FPN_1x.py"))


def test_several_bases_in_other_folders(tmp_path) -> None:
    """As in detectron2: relative to the config, and later ones override earlier ones."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.yaml").write_text("SEED: 1\nVIS_PERIOD: 1")
    (tmp_path / "two.yaml").write_text("SEED: 2")
    path = tmp_path / "sub" / "config.yaml"
    path.write_text(f"_BASE_: [../one.yaml, {tmp_path}/two.yaml]\nMODEL: {{SE: &se {{REDUCTION: 8}}}}")
    cfg = read_config(str(path))
    assert (cfg.SEED, cfg.VIS_PERIOD, cfg.MODEL.SE.REDUCTION) == (2, 1, 8)


def test_many_bases_are_allowed_up_to_a_number(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"SEED": 1}))
    path = tmp_path / "config.yaml"
    for count, is_allowed in ((99, True), (100, False)):
        path.write_text(yaml.safe_dump({"_BASE_": ["base.yaml"] * count}))
        if is_allowed:
            assert read_config(str(path)).SEED == 1
        else:
            with raises("config.bad_base", "100"):
                read_config(str(path))


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("MODEL.SE.RATIO 8", "config.unknown_key", "MODEL.SE.RATIO"),
        ("MODEL.SE.REDUCTION many", "config.bad_value", "MODEL.SE.REDUCTION 'many': this key takes a whole number"),
        ("SOLVER.MAX_ITER 1e4", "config.bad_value", "SOLVER.MAX_ITER '1e4': this key takes a whole number"),
        ("SOLVER.BASE_LR fast", "config.bad_value", "SOLVER.BASE_LR 'fast': this key takes a number"),
        ("SOLVER.AMP.ENABLED true", "config.bad_value", "SOLVER.AMP.ENABLED 'true': this key is True or False"),
        ("SOLVER.STEPS 100", "config.bad_value", "SOLVER.STEPS '100': this key takes a list"),
        ("MODEL.WEIGHTS 5", "config.bad_value", "MODEL.WEIGHTS '5': this key takes text"),
        ("MODEL.SE.REDUCTION", "config.not_pairs", "MODEL.SE.REDUCTION"),
        ("MODEL.SE.REDUCTION 8 SEED", "config.not_pairs", "SEED"),
        ("SEED 1 --num-gpus 2", "config.late_flag", "--num-gpus"),
        ("MODEL.WEIGHTS.x 1", "config.unknown_key", "MODEL.WEIGHTS.x"),
        ("MODEL 1", "config.bad_value", "MODEL '1': this is a group of keys"),
        (f"{'x' * 100_000} 1", "config.unknown_key", "xxx"),
        ("MODEL.SE.REDUCTION None", "config.no_value", "its default is 16"),
        ("SOLVER.BACKBONE_FREEZE_ITERS -1", "config.bad_value", "SOLVER.BACKBONE_FREEZE_ITERS: -1"),
        ("SOLVER.BACKBONE_MULTIPLIER -0.1", "config.bad_value", "SOLVER.BACKBONE_MULTIPLIER: -0.1"),
        ("MODEL.PIXEL_STD [0.0,1.0,1.0]", "config.bad_value", "MODEL.PIXEL_STD: [0.0, 1.0, 1.0]"),
        ("INPUT.FORMAT XYZ", "config.unknown_choice", "INPUT.FORMAT: 'XYZ'"),
    ],
)
def test_bad_overrides_are_refused(words, code, named) -> None:
    with raises(code, named):
        read_config(SE, words.split())


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("MODEL.SE.GATE swish", "config.unknown_choice", "MODEL.SE.GATE: 'swish' is not one of sigmoid, tanh, relu"),
        ("MODEL.SE.POSITION up", "config.unknown_choice", "MODEL.SE.POSITION: 'up'"),
        ("MODEL.SE.SQUEEZE min", "config.unknown_choice", "MODEL.SE.SQUEEZE: 'min'"),
        ("MODEL.SE.STAGES ['res6']", "config.unknown_choice", "MODEL.SE.STAGES: 'res6'"),
        ("MODEL.SE.REDUCTION 0", "config.bad_value", "MODEL.SE.REDUCTION: 0"),
        ("MODEL.SE.REDUCTION_PER_STAGE [8,8,8,0.5]", "config.bad_value", "0.5"),
        ("MODEL.SE.REDUCTION_PER_STAGE [8,8]", "config.bad_value", "[8, 8]"),
        ("MODEL.SE.INIT default MODEL.SE.GATE_BIAS 4 MODEL.SE.BIAS False", "config.bad_value", "MODEL.SE.BIAS"),
        ("MODEL.RESNETS.DEPTH 51", "config.bad_value", "MODEL.RESNETS.DEPTH: 51"),
        ("MODEL.RESNETS.NORM Foo", "config.not_buildable", "build_se_resnet_fpn_backbone"),
        ("MODEL.BACKBONE.NAME build_resnet", "config.unknown_backbone", "did you mean build_resnet_backbone?"),
        ("MODEL.BACKBONE.NAME qqq", "config.unknown_backbone", "'qqq'"),
    ],
)
def test_backbones_that_cannot_be_built_are_refused(words, code, named) -> None:
    cfg = read_config(SE, words.split())
    with raises(code, named):
        check_backbone(cfg)


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("MODEL.META_ARCHITECTURE Foo", "config.not_buildable", "this Foo"),
        ("MODEL.RPN.IN_FEATURES ['p9']", "config.not_buildable", "KeyError: 'p9'"),
        ("SOLVER.LR_SCHEDULER_NAME Foo", "config.not_buildable", "Unknown LR scheduler: Foo"),
        (
            "SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR SOLVER.STEPS (1,) SOLVER.MAX_ITER 1",
            "config.not_buildable",
            "STEPS",
        ),
        ("MODEL.FPN.OUT_CHANNELS 33554432", "config.too_large", "GiB"),
        ("TEST.AUG.ENABLED True MODEL.KEYPOINT_ON True", "config.no_augmentation", "GeneralizedRCNN with keypoints"),
        ("TEST.AUG.ENABLED True MODEL.META_ARCHITECTURE RetinaNet", "config.no_augmentation", "RetinaNet"),
    ],
)
def test_detectors_that_cannot_be_built_are_refused(words, code, named) -> None:
    cfg = read_config(SE, words.split())
    if "RetinaNet" in words:
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RETINANET.IN_FEATURES = "build_retinanet_se_resnet_fpn_backbone", ["p3"]
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
    with raises(code, named):
        check_model(cfg)


def test_test_time_augmentation_is_allowed_for_boxes() -> None:
    cfg = read_config(SE, ["TEST.AUG.ENABLED", "True"])
    check_model(cfg)
    assert cfg.MODEL.DEVICE != "meta"


def test_integers_are_accepted_for_floats() -> None:
    """detectron2 refuses `1` as a learning rate."""
    cfg = read_config(SE, ["SOLVER.BASE_LR", "1", "MODEL.SE.GATE_BIAS", "-2", "SOLVER.MAX_ITER", "7"])
    assert (cfg.SOLVER.BASE_LR, cfg.MODEL.SE.GATE_BIAS, cfg.SOLVER.MAX_ITER) == (1.0, -2.0, 7)


def test_other_defaults_are_not_changed() -> None:
    base = get_cfg()
    base.VIS_PERIOD = 5
    cfg = read_config(SE, ["MODEL.SE.REDUCTION", "8"], base=base)
    assert (cfg.VIS_PERIOD, cfg.MODEL.SE.REDUCTION, base.MODEL.SE.REDUCTION) == (5, 8, 16)
