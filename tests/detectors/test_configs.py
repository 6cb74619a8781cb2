"""Compares plain configs with detectron2's of the same name, and SE configs with the plain ones."""

import os
import re
from pathlib import Path

import detectron2.model_zoo
import pytest

from se_detection import model_zoo
from se_detection.config.defaults import flatten

FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints", "COCO-PanopticSegmentation", "Misc")
# detectron2's configs of these detectors with a ResNet-50 or -101 and the standard recipe.
THEIRS = r"((faster|mask|cascade_mask|keypoint)_rcnn|retinanet|panoptic_fpn)_R_(50|101)(_FPN|_C4|_DC5|)_[13]x"
# The keys that depend on the weights.
WEIGHTS = {"MODEL.WEIGHTS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1", "INPUT.FORMAT"}
NAMES = [name for name in model_zoo.names() if name.split("/")[0] in FOLDERS]
PLAIN = [name for name in NAMES if "_R_" in name and "_SE_" not in name]
# detectron2 has the first only with the longer schedule, and no AdamW in yaml.
ADAMW = [f"COCO-Detection/faster_rcnn_R_50_FPN_1x_adamw{weights}" for weights in ("", "_a2", "_a3")]
OURS_ONLY = ["COCO-Detection/faster_rcnn_R_101_FPN_1x", *ADAMW]


def differing_keys(one, other) -> set[str]:
    a, b = flatten(one), flatten(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def test_each_config_of_detectron2_has_a_plain_and_an_se_config() -> None:
    zoo = Path(detectron2.model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")).parents[1]
    theirs = {
        f"{folder}/{path.stem}"
        for folder in FOLDERS
        for path in (zoo / folder).glob("*.yaml")
        if re.fullmatch(THEIRS, path.stem)
    }
    assert len(theirs) == 29
    assert theirs == {*PLAIN} - {*OURS_ONLY}
    assert {name.replace("_R_", "_SE_R_") for name in PLAIN} <= {*NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLAIN if name not in OURS_ONLY])
def test_a_plain_config_equals_detectron2s(name) -> None:
    ours, theirs = model_zoo.get_config(name), detectron2.model_zoo.get_config(f"{name}.yaml")
    assert differing_keys(ours, theirs) == WEIGHTS


@pytest.mark.parametrize("name", ADAMW)
def test_adamw_is_the_only_other_difference(name) -> None:
    ours = model_zoo.get_config(name)
    theirs = detectron2.model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    assert differing_keys(ours, theirs) == WEIGHTS | {"SOLVER.OPTIMIZER", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY"}
    # mmdetection's configs/resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco.py
    solver = ours.SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (0.0002, 0.05, 0.0)


@pytest.mark.parametrize("name", PLAIN)
def test_an_se_config_differs_only_in_backbone_and_weights(name) -> None:
    plain, se = model_zoo.get_config(name), model_zoo.get_config(name.replace("_R_", "_SE_R_"))
    expected = {"MODEL.BACKBONE.NAME", "MODEL.WEIGHTS"}
    if "_C4_" in name:
        # In C4 detectors, the ROI heads have the res5.
        expected |= {"MODEL.ROI_HEADS.NAME"}
        assert se.MODEL.ROI_HEADS.NAME == f"SE{plain.MODEL.ROI_HEADS.NAME}"
    assert differing_keys(plain, se) == expected
    assert se.MODEL.BACKBONE.NAME == plain.MODEL.BACKBONE.NAME.replace("resnet", "se_resnet")
    # The weights of timm and mmpretrain: RGB, with ImageNet's mean and std for 0 to 255, and the stride in the 3x3.
    for cfg in (plain, se):
        assert cfg.MODEL.WEIGHTS.startswith("timm://" if "adamw" in name else "mmpretrain://")
        assert f"resnet{cfg.MODEL.RESNETS.DEPTH}" in cfg.MODEL.WEIGHTS
        assert cfg.INPUT.FORMAT == "RGB"
        assert [value / 255 for value in cfg.MODEL.PIXEL_MEAN] == pytest.approx([0.485, 0.456, 0.406])
        assert [value / 255 for value in cfg.MODEL.PIXEL_STD] == pytest.approx([0.229, 0.224, 0.225])
        assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1


def test_base_configs_are_inside_the_folder() -> None:
    folder = Path(model_zoo.get_config_file(NAMES[0])).parents[1]
    files = [path for path in folder.rglob("*.yaml") if "lazy" not in path.parts]
    assert len(files) > len(NAMES)
    for path in files:
        for line in re.findall(r"^_BASE_: (.+)$", path.read_text(), flags=re.MULTILINE):
            for base in line.strip("[]").split(", "):
                base_file = Path(os.path.normpath(path.parent / base))
                assert base_file.is_file()
                assert base_file.is_relative_to(folder)
