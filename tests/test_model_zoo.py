import re
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode, LazyConfig
from detectron2.model_zoo import model_zoo as detectron2_functions
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from se_detection import UserError, convert_state_dict, model_zoo
from se_detection.checkpoint import released_weights, weights_file
from se_detection.checkpoint.converted import Converted
from se_detection.config.meta_device import Uninitialized
from se_detection.runs.recipe import is_of_backbone

from .helpers import raises, with_random_weights

LAZY = [name for name in model_zoo.names() if name.endswith(".py")]
# Those of Any-Network and CPU are tested in tests/detectors/test_{any_network,cpu}_configs.py.
YAML = [name for name in model_zoo.names() if name not in LAZY and not name.startswith(("Any-Network/", "CPU/"))]
PAIRS = [name for name in YAML if "_SE_" in name]

# The keys in which the two configs of a pair may differ: the backbone, its weights, and the input of those weights.
BACKBONE_AND_WEIGHTS = {
    "MODEL.BACKBONE.NAME",
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "INPUT.FORMAT",
}
# The heads of a C4 detector contain a stage of the backbone.
C4_HEADS = {"MODEL.ROI_HEADS.NAME"}


def flat(node: CfgNode, prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return values


def differences(one: CfgNode, other: CfgNode) -> set[str]:
    a, b = flat(one), flat(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}


def test_the_documented_configs_exist() -> None:
    expected = {
        f"COCO-Detection/faster_rcnn_{net}_{d}_FPN_{s}"
        for net in ("R", "SE_R")
        for d in (50, 101)
        for s in ("1x", "3x")
    }
    expected |= {f"Paper/faster_rcnn_{net}_{d}_FPN_2x" for net in ("R", "SE_R") for d in (50, 101)}
    expected |= {f"Toy/faster_rcnn_{net}_{d}_FPN" for net in ("R", "SE_R") for d in (18, 50)}
    expected |= {f"lazy/COCO-Detection/faster_rcnn_{net}_50_FPN_{s}.py" for net in ("R", "SE_R") for s in ("1x", "3x")}
    assert expected <= set(model_zoo.names())
    assert not [name for name in model_zoo.names() if "Base" in name or "common" in name]


def test_every_lazy_config_of_a_detector_has_a_name() -> None:
    """A config of a detector has a `train` node; the parts that configs share do not."""
    folder = Path(model_zoo.get_config_file(LAZY[0])).parents[2]
    assert folder.name == "configs"
    whole = [path for path in folder.glob("lazy/**/*.py") if "train" in path.read_text() and "common" not in path.parts]
    assert sorted(str(path.relative_to(folder)) for path in whole) == LAZY


@pytest.mark.parametrize("name", PAIRS)
def test_the_configs_of_a_pair_differ_only_in_backbone_and_weights(name) -> None:
    plain_name = re.sub(r"_FPN_(open|pre|identity|3x3|r\d+)$", "_FPN", name.replace("_SE_", "_"))
    gated, plain = model_zoo.get_config(name), model_zoo.get_config(plain_name)
    found = {key for key in differences(gated, plain) if not key.startswith("MODEL.SE.")}
    assert found <= BACKBONE_AND_WEIGHTS | {"MODEL.RESNETS.STEM_TYPE"} | (C4_HEADS if "_C4_" in name else set())
    assert gated.MODEL.BACKBONE.NAME == plain.MODEL.BACKBONE.NAME.replace("resnet", "se_resnet")
    # `se-det compare` accepts them as a pair; tests/runs/test_recipe.py has the heads of C4.
    assert all(map(is_of_backbone, differences(gated, plain) - C4_HEADS))


@pytest.mark.parametrize("schedule", ["1x", "3x"])
@pytest.mark.parametrize("depth", [50, 101])
def test_coco_configs_are_detectron2s_recipe(depth, schedule) -> None:
    theirs_name = f"COCO-Detection/faster_rcnn_R_{depth}_FPN_{schedule}.yaml"
    if (depth, schedule) == (101, "1x"):  # detectron2 has only 3x for depth 101; compare with 1x of depth 50
        theirs_name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    ours = model_zoo.get_config(f"COCO-Detection/faster_rcnn_R_{depth}_FPN_{schedule}")
    theirs = detectron2_zoo.get_config(theirs_name)
    allowed = BACKBONE_AND_WEIGHTS | {"MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.RESNETS.DEPTH"}
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


@pytest.mark.parametrize(
    "name", [name if "Toy/" in name else pytest.param(name, marks=pytest.mark.slow) for name in YAML]
)
def test_every_config_builds_its_detector(shallow_here, name) -> None:
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), Uninitialized():
        model = build_model(cfg)
    gated = [key for key, _ in model.named_parameters() if ".se." in key]
    assert bool(gated) == ("_se_" in cfg.MODEL.BACKBONE.NAME and len(cfg.MODEL.SE.STAGES) > 0)
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        assert model.num_classes == cfg.MODEL.RETINANET.NUM_CLASSES
    else:
        assert model.roi_heads.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES


def test_get_config_reads_lazy_configs_as_detectron2_does() -> None:
    """tests/detectors/test_lazy_configs.py builds their detectors."""
    cfg = model_zoo.get_config(LAZY[0])
    assert isinstance(cfg, DictConfig)
    theirs = LazyConfig.load(model_zoo.get_config_file(LAZY[0]))
    assert OmegaConf.to_yaml(cfg.model) == OmegaConf.to_yaml(theirs.model)


DETECTORS = ["COCO-Detection/faster_rcnn_SE_R_50_FPN_1x", "lazy/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.py"]


@pytest.fixture
def offline_weights(monkeypatch, tmp_path) -> nn.Module:
    """The configs' SE-ResNet-50, which is also timm's: random weights instead of a download, and an empty cache."""
    model = with_random_weights(partial(timm.create_model, "seresnet50"))
    converted = Converted.from_state_dict(model.state_dict(), "timm", sha256="")
    monkeypatch.setattr(released_weights, "fetch_released", lambda name: converted)
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS, ids=["yaml", "lazy"])
def test_get_loads_the_weights_of_the_config(name, offline_weights) -> None:
    with Uninitialized():
        model = model_zoo.get(name)
    assert model.training
    expected = convert_state_dict(offline_weights.state_dict(), "timm")
    loaded = model.backbone.bottom_up.state_dict()
    assert set(loaded) == set(expected) - {"linear.weight", "linear.bias"}
    for key, tensor in loaded.items():
        assert torch.equal(tensor.cpu(), expected[key]), key


@pytest.mark.slow
def test_get_loads_res5_of_a_c4_detector(offline_weights) -> None:
    with Uninitialized():
        heads = model_zoo.get("COCO-Detection/faster_rcnn_SE_R_50_C4_1x", device="cpu").roi_heads
    expected = convert_state_dict(offline_weights.state_dict(), "timm")
    for key, tensor in heads.res5.state_dict().items():
        assert torch.equal(tensor, expected[f"res5.{key}"]), key


@pytest.mark.slow
def test_get_loads_as_detectron2_does(monkeypatch, tmp_path) -> None:
    """The same config and file, through detectron2's own function."""
    model = with_random_weights(partial(model_zoo.get, "Toy/faster_rcnn_SE_R_18_FPN", device="cpu"))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    monkeypatch.setattr(model_zoo, "get_config", lambda name, trained: cfg.clone())
    monkeypatch.setattr(detectron2_functions, "get_config", lambda name, trained: cfg.clone())
    with Uninitialized():
        ours, theirs = model_zoo.get("any").state_dict(), detectron2_zoo.get("any").state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
        assert torch.equal(tensor.cpu(), model.state_dict()[key]), key


@pytest.mark.slow
def test_get_refuses_weights_that_fit_in_part(monkeypatch, offline_weights, tmp_path) -> None:
    """detectron2's function logs a warning for such a file."""
    weights = convert_state_dict(offline_weights.state_dict(), "timm")
    del weights["res3.1.se.fc1.weight"]
    torch.save({"model": weights, "matching_heuristics": True}, tmp_path / "weights.pth")
    for name in DETECTORS:
        cfg = model_zoo.get_config(name)
        if isinstance(cfg, DictConfig):
            cfg.train.init_checkpoint = str(tmp_path / "weights.pth")
        else:
            cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
        with monkeypatch.context() as patch:
            patch.setattr(model_zoo, "get_config", lambda name, trained, cfg=cfg: cfg)
            with raises("weights.partial_backbone", "1 of the", "res3.1.se.fc1.weight"), Uninitialized():
                model_zoo.get(name)


@pytest.mark.slow
def test_get_compares_the_input_with_the_files(monkeypatch, offline_weights) -> None:
    cfg = model_zoo.get_config(DETECTORS[0])
    cfg.INPUT.FORMAT = "BGR"
    monkeypatch.setattr(model_zoo, "get_config", lambda name, trained: cfg)
    with pytest.raises(UserError, match=r"INPUT\.FORMAT is RGB in the file and BGR in the config"), Uninitialized():
        model_zoo.get("any")


@pytest.mark.parametrize(
    "name", ["Toy/faster_rcnn_SE_R_18_FPN", pytest.param(DETECTORS[1], marks=pytest.mark.slow)], ids=["yaml", "lazy"]
)
def test_device(name, offline_weights) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    for device in (None, "cpu"):
        model = model_zoo.get(name, device=device).eval()
        # Each passes 13 million weights.
        model.proposal_generator.post_nms_topk[False] = 10
        assert {parameter.device.type for parameter in model.parameters()} == {device or default}
        with torch.no_grad():
            (output,) = model([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 48}])
        assert output["instances"].image_size == (32, 48)


def test_unknown_names_and_trained_weights_are_refused() -> None:
    # A lazy config has its suffix, as in detectron2's zoo.
    for name, meant in (
        ("Toy/faster_rcnn_SE", "Toy/faster_rcnn_SE_R_18_FPN"),
        ("coco-detection/fcos_se_r_50_fpn_1x", "lazy/COCO-Detection/fcos_SE_R_50_FPN_1x.py"),
        ("FasterRCNN-SE-R50-FPN-1x", DETECTORS[0]),
    ):
        with raises("config.not_found", repr(name), f"did you mean {meant!r}?"):
            model_zoo.get(name)
    for name in ("", "../x", "/no/own.yaml"):
        with raises("config.not_found", repr(name), "se-det zoo"):
            model_zoo.get_config(name)
    # detectron2's; this project's own names are unique.
    same = (f"{folder}-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x" for folder in ("LVISv0.5", "LVISv1"))
    with raises("config.ambiguous_name", *same):
        model_zoo.get_config("mask_rcnn_X_101_32x8d_FPN_1x.yaml")
    for name in ("Toy/faster_rcnn_SE_R_18_FPN", LAZY[0]):
        with raises("weights.not_published", name):
            model_zoo.get(name, trained=True)


def test_a_folder_is_optional_in_a_name_that_is_unique() -> None:
    folder, known = Path(model_zoo.get_config_file(DETECTORS[0])).parents[1], model_zoo.names()
    for name in known[::12]:
        path = folder / (name if name.endswith(".py") else f"{name}.yaml")
        assert model_zoo.get_config_file(name) == model_zoo.get_config_file(f"configs/{name}") == str(path)
        assert model_zoo.get_config_file(path.name) == str(path)


def test_detectron2s_names() -> None:
    """Those of its own table, unless this project has a config of the same name."""
    names = set(detectron2_functions._ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX).difference(model_zoo.names())
    for name in sorted(names)[::6]:
        # Its table has no suffixes. These configs are lazy.
        file = f"{name}.py" if "new_baselines" in name else f"{name}.yaml"
        assert Path(model_zoo.get_config_file(file)).samefile(detectron2_zoo.get_config_file(file))
    assert model_zoo.get_config("PascalVOC-Detection/faster_rcnn_R_50_C4").DATASETS.TEST == ("voc_2007_test",)


def test_a_config_file_is_found_by_path_or_by_name(tmp_path, monkeypatch) -> None:
    name = "Toy/faster_rcnn_SE_R_18_FPN"
    assert model_zoo.find_config_file(name) == model_zoo.get_config_file(name)
    assert model_zoo.find_config_file(f"{name}.yaml") == model_zoo.get_config_file(f"{name}.yaml")
    for one in (name, LAZY[0]):
        assert Path(model_zoo.find_config_file(one)).is_file()
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").touch()
    assert model_zoo.find_config_file("own.yaml") == "own.yaml"
    # A folder is not a config file.
    for other in (str(tmp_path), f"configs/{name}s.yaml"):
        with raises("config.not_found", other):
            model_zoo.find_config_file(other)
