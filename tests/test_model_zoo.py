import re

import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode

from se_detection import UserError, model_zoo

PAIRS = [name for name in model_zoo.names() if "_SE_" in name]

# What a pair's arms may differ in: the trunk, its weights, and what those weights were trained with.
TRUNK_AND_WEIGHTS = {
    "MODEL.BACKBONE.NAME",
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "INPUT.FORMAT",
}


def flat(node: CfgNode, prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return values


def differences(one: CfgNode, other: CfgNode) -> set[str]:
    a, b = flat(one), flat(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def test_the_promised_configs_are_there() -> None:
    expected = {
        f"COCO-Detection/faster_rcnn_{arm}_{d}_FPN_{s}"
        for arm in ("R", "SE_R")
        for d in (50, 101)
        for s in ("1x", "3x")
    }
    expected |= {f"Paper/faster_rcnn_{arm}_{d}_FPN_2x" for arm in ("R", "SE_R") for d in (50, 101)}
    expected |= {f"Toy/faster_rcnn_{arm}_{d}_FPN" for arm in ("R", "SE_R") for d in (18, 50)}
    assert expected <= set(model_zoo.names())
    assert not [name for name in model_zoo.names() if "Base" in name]


@pytest.mark.parametrize("name", PAIRS)
def test_arms_of_a_pair_differ_in_trunk_and_weights_alone(name) -> None:
    plain_name = re.sub(r"_FPN_(open|pre|identity|3x3|r\d+)$", "_FPN", name.replace("_SE_", "_"))
    gated, plain = model_zoo.get_config(name), model_zoo.get_config(plain_name)
    found = {key for key in differences(gated, plain) if not key.startswith("MODEL.SE.")}
    assert found <= TRUNK_AND_WEIGHTS
    assert gated.MODEL.BACKBONE.NAME == plain.MODEL.BACKBONE.NAME.replace("build_", "build_se_")


@pytest.mark.parametrize("schedule", ["1x", "3x"])
@pytest.mark.parametrize("depth", [50, 101])
def test_coco_configs_are_detectron2s_recipe(depth, schedule) -> None:
    theirs_name = f"COCO-Detection/faster_rcnn_R_{depth}_FPN_{schedule}.yaml"
    if (depth, schedule) == (101, "1x"):  # detectron2 has the 101 in 3x only: the 1x schedule is that of its 50
        theirs_name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    ours = model_zoo.get_config(f"COCO-Detection/faster_rcnn_R_{depth}_FPN_{schedule}")
    theirs = detectron2_zoo.get_config(theirs_name)
    allowed = TRUNK_AND_WEIGHTS | {"MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.DEPTH"}
    assert differences(ours, theirs) - {key for key in flat(ours) if key.startswith("MODEL.SE.")} <= allowed
    assert ours.MODEL.RESNETS.DEPTH == depth


def test_paper_config_is_detectrons_2x() -> None:
    ours = model_zoo.get_config("Paper/faster_rcnn_R_50_FPN_2x")
    theirs = detectron2_zoo.get_config("Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x.yaml")
    found = differences(ours, theirs)
    assert found <= {
        "SOLVER.STEPS",
        "SOLVER.MAX_ITER",
        "SOLVER.WARMUP_ITERS",
        "SOLVER.WARMUP_FACTOR",
        "DATASETS.TRAIN",
        "DATASETS.TEST",
    }
    # Detectron's e2e_faster_rcnn_R-50-FPN_2x.yaml
    assert ours.SOLVER.STEPS == (120000, 160000)
    assert ours.SOLVER.MAX_ITER == 180000
    assert ours.SOLVER.BASE_LR == 0.02
    assert ours.SOLVER.IMS_PER_BATCH == 16
    assert ours.SOLVER.WARMUP_ITERS == 500
    assert ours.SOLVER.WARMUP_FACTOR == pytest.approx(1 / 3, abs=1e-4)
    assert ours.DATASETS.TRAIN == ("coco_2014_train", "coco_2014_valminusminival")
    assert ours.DATASETS.TEST == ("coco_2014_minival",)


@pytest.mark.parametrize("name", model_zoo.names())
def test_every_config_builds_its_detector(name) -> None:
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    model = detectron2_zoo.model_zoo.build_model(cfg)
    gated = [key for key, _ in model.named_parameters() if ".se." in key]
    assert bool(gated) == ("_se_" in cfg.MODEL.BACKBONE.NAME and len(cfg.MODEL.SE.STAGES) > 0)
    assert model.roi_heads.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES


def test_names_with_and_without_yaml() -> None:
    name = "Toy/faster_rcnn_SE_R_18_FPN"
    assert model_zoo.get_config_file(name) == model_zoo.get_config_file(f"{name}.yaml")


def test_a_detector_by_name_works_where_there_is_no_gpu() -> None:
    model = model_zoo.get("Toy/faster_rcnn_SE_R_18_FPN")
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_unknown_name_and_missing_weights_are_refused() -> None:
    with pytest.raises(UserError, match="no config is named 'Toy/faster'; choose from Ablations"):
        model_zoo.get_config("Toy/faster")
    with pytest.raises(UserError, match="no trained weights are published"):
        model_zoo.get("Toy/faster_rcnn_SE_R_18_FPN", trained=True)
