import json
from functools import partial

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from se_detection import UserError, model_zoo
from se_detection.config.read_config import read_config
from se_detection.modeling.complexity import backbone_gflops, count_parameters, detector_complexity

FPN = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
C4 = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {NAME: build_se_resnet_backbone}
  RPN: {POST_NMS_TOPK_TEST: 7}
  ROI_HEADS: {NAME: SERes5ROIHeads, NUM_CLASSES: 3}
"""
RETINANET = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {NAME: build_retinanet_se_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5]}
  RETINANET: {NUM_CLASSES: 3, NUM_CONVS: 2}
"""
NUM_ANCHORS = 15  # detectron2's default for a C4 detector: five sizes, three ratios


@pytest.fixture
def run_tool(run_script):
    return partial(run_script, "analyze.py")


@pytest.fixture
def write_config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def check_against_detectron2(cfg: CfgNode, parts: dict[str, tuple[int, float]], padded: tuple[int, int]) -> None:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    detector = build_model(cfg)
    assert sum(parameters for parameters, _ in parts.values()) == count_parameters(detector)
    assert parts["backbone"][1] + parts.get("FPN", (0, 0.0))[1] == pytest.approx(
        backbone_gflops(detector.backbone, *padded)
    )


def test_faster_rcnn_with_fpn() -> None:
    cfg = read_config(FPN, [])
    counted = detector_complexity(cfg, (100, 120))
    assert (counted.size, counted.padded, counted.proposals) == ((100, 120), (128, 128), 100)
    assert list(counted.parts) == ["backbone", "FPN", "RPN", "heads"]
    check_against_detectron2(cfg, counted.parts, counted.padded)
    # FPN 128 wide, three anchors: a 3x3 convolution, then scores and four numbers a box, on p2 to p6
    positions = 32**2 + 16**2 + 8**2 + 4**2 + 2**2
    assert counted.parts["RPN"][0] == 9 * 128 * 128 + 128 + 15 * (128 + 1)
    assert counted.parts["RPN"][1] * 1e9 == pytest.approx(positions * (9 * 128 * 128 + 15 * 128))
    # for each of 100 proposals, two layers of 512, five scores, four numbers a box for each of four classes
    heads = 7 * 7 * 128 * 512 + 512 * 512 + 512 * (5 + 16)
    assert counted.parts["heads"] == (heads + 512 + 512 + 5 + 16, pytest.approx(100 * heads / 1e9))


def test_faster_rcnn_c4(write_config) -> None:
    cfg = read_config(write_config(C4), [])
    counted = detector_complexity(cfg, (65, 64))
    assert (counted.padded, counted.proposals) == ((65, 64), 7)
    assert list(counted.parts) == ["backbone", "RPN", "heads"]
    check_against_detectron2(cfg, counted.parts, counted.padded)
    positions = 5 * 4
    flops = positions * (9 * 1024 * 1024 + 5 * NUM_ANCHORS * 1024)
    assert counted.parts["RPN"][1] * 1e9 == pytest.approx(flops)
    # res5 on 14x14, halved by its first 1x1 convolutions; SE; then four scores and twelve numbers
    first = 49 * (1024 * 512 + 9 * 512 * 512 + 512 * 2048 + 1024 * 2048)
    others = 2 * 49 * (2048 * 512 + 9 * 512 * 512 + 512 * 2048)
    heads = first + others + 3 * 2 * 2048 * 128 + 2048 * (4 + 12)
    assert counted.parts["heads"][1] * 1e9 == pytest.approx(7 * heads)


def test_retinanet(write_config) -> None:
    cfg = read_config(write_config(RETINANET), [])
    counted = detector_complexity(cfg, (64, 64))
    assert counted.proposals is None
    assert list(counted.parts) == ["backbone", "FPN", "head"]
    check_against_detectron2(cfg, counted.parts, counted.padded)
    positions = 8**2 + 4**2 + 2**2 + 1 + 1
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    per_position = len(anchors.SIZES[0]) * len(anchors.ASPECT_RATIOS[0])
    layers = 2 * 2 * 9 * 256 * 256 + 9 * 256 * per_position * (3 + 4)
    assert counted.parts["head"][1] * 1e9 == pytest.approx(positions * layers)


def test_counts_do_not_depend_on_the_weights() -> None:
    cfg = read_config(FPN, [])
    torch.manual_seed(0)
    first = detector_complexity(cfg, (64, 64))
    torch.manual_seed(1)
    assert detector_complexity(cfg, (64, 64)) == first


def test_the_default_size_is_the_test_size() -> None:
    cfg = read_config(FPN, ["INPUT.MIN_SIZE_TEST", "64"])
    assert detector_complexity(cfg).size == (64, 85)
    with pytest.raises(UserError, match="size: 31 64 is too small; give a height and a width of at least 32"):
        detector_complexity(cfg, (31, 64))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.SE.RATIO", "8"], "unknown config key MODEL.SE.RATIO"),
        (["MODEL.SE.GATE", "swish"], "MODEL.SE.GATE: 'swish' is not one of sigmoid"),
        (["MODEL.BACKBONE.NAME", "build_resnet"], "no backbone is named 'build_resnet'"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "META_ARCHITECTURE: detectors with PanopticFPN are not counted"),
        (
            ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"],
            "NAME: detectors with CascadeROIHeads are not counted, only Stan",
        ),
        (["MODEL.ROI_BOX_HEAD.NAME", "NoHead"], "can't be built: KeyError.*NoHead"),
        (["MODEL.RESNETS.NORM", "XN"], "can't be built: KeyError.*XN"),
        (["MODEL.MASK_ON", "True"], "MODEL.MASK_ON: detectors with True are not counted, only False"),
    ],
)
def test_other_detectors_are_refused(overrides, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        detector_complexity(read_config(FPN, overrides), (64, 64))
    assert "\n" not in str(caught.value)


def test_the_tool_prints_and_writes(run_tool, tmp_path, capsys) -> None:
    file = tmp_path / "counts.json"
    arguments = [
        "complexity",
        "--json",
        file,
        "--config-file",
        FPN,
        "--size",
        64,
        96,
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        9,
    ]
    run_tool(*arguments)
    shown = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert [row["part"] for row in content["parts"]] == ["backbone", "FPN", "RPN", "heads", "total"]
    for row in content["parts"]:
        assert f"{row['parameters'] / 1e6:.3f}" in shown
        assert f"{row['gflops']:.3f}" in shown
    assert "64×96, padded to 64×96, and 9 proposals" in shown
    with pytest.raises(SystemExit) as caught:
        run_tool(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {file} already exists; choose another name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "nowhere.yaml"], "no config is named 'nowhere.yaml'"),
        (["--config-file", FPN, "MODEL.SE.RATIO", "8"], "config overrides: MODEL.SE.RATIO '8': unknown config key"),
        (["--size", "800", "800"], "--config-file is missing"),
        (["--json", "/nowhere/counts.json"], "/nowhere/counts.json: there is no folder /nowhere"),
    ],
)
def test_the_tool_prints_errors_in_one_line(run_tool, capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool("complexity", *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_help_ends_with_an_example(run_tool, capsys) -> None:
    with pytest.raises(SystemExit):
        run_tool("complexity", "--help")
    assert capsys.readouterr().out.rstrip().splitlines()[-1].lstrip().startswith("$ se-det analyze complexity")
