import json

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone, build_model
from torch import nn
from torchvision.models import get_model_weights

from se_detection import create_backbone, model_zoo
from se_detection.config.meta_device import Uninitialized
from se_detection.config.read_config import read_config
from se_detection.modeling.complexity import (
    backbone_gflops,
    count_parameters,
    detector_complexity,
    image_size,
    multiply_adds,
    padded_size,
)

from ..helpers import raises

FPN = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
C4 = [
    *("MODEL.BACKBONE.NAME", "build_se_resnet_backbone", "MODEL.ROI_HEADS.NAME", "SERes5ROIHeads"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "16", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.RPN.POST_NMS_TOPK_TEST", "7", "MODEL.ROI_BOX_HEAD.NAME", ""),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]", "MODEL.RESNETS.STRIDE_IN_1X1", "True"),
]
RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
    *("MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.RETINANET.NUM_CONVS", "2"),
]


class Countable(nn.Module):
    """A network whose multiply-adds can be counted by hand; norms, pools, activations and resizing are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norms = nn.Sequential(nn.GroupNorm(2, 8), FrozenBatchNorm2d(8))
        self.resize = nn.Upsample(scale_factor=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)
        self.unused = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.pool(self.resize(self.norms(self.grouped(self.stem(x))))).flatten(1))


def test_counts_equal_those_by_hand() -> None:
    model = Countable()
    counts = multiply_adds(model, torch.zeros(2, 3, 10, 12))
    stem = 2 * 8 * 5 * 6 * (3 * 3 * 3)
    grouped = 2 * 8 * 5 * 6 * (2 * 3 * 3)
    linear = 2 * 8 * 5
    assert counts["stem"] == counts["stem.0"] == stem
    assert counts["grouped"] == grouped
    assert counts["fc"] == linear
    assert counts["unused"] == counts["no such module"] == 0
    assert counts[""] == stem + grouped + linear
    assert model.training
    # weights and biases of both convolutions, two norms, two linear layers; FrozenBN has buffers
    assert count_parameters(model) == (216 + 8) + (144 + 8) + 2 * (8 + 8) + 2 * (40 + 5)
    assert model.stem[1].num_batches_tracked == 0
    multiply_adds(model.eval(), torch.zeros(1, 3, 8, 8))
    assert not model.training


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnext50_32x4d", marks=pytest.mark.slow)])
def test_counts_equal_torchvisions(name) -> None:
    """torchvision's models carry their 10⁹ multiply-adds, stride in the 3x3 convolutions, rounded to 0.001."""
    meta = get_model_weights(name).IMAGENET1K_V1.meta
    backbone = create_backbone(name, num_classes=1000, out_features=("res5", "linear"))
    assert multiply_adds(backbone, torch.zeros(1, 3, 224, 224))[""] / 1e9 == pytest.approx(meta["_ops"], abs=0.001)
    assert count_parameters(backbone) == meta["num_params"]


class OneLayer(Backbone):
    size_divisibility = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return {"conv": self.conv(x)}


def test_images_are_padded_as_in_detectron2() -> None:
    cfg = get_cfg()
    assert image_size(cfg) == (800, 1067)
    cfg.INPUT.MAX_SIZE_TEST = 1000
    assert image_size(cfg) == (800, 1000)
    # As in detectron2, not resized.
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert image_size(cfg) == (800, 1000)
    backbone = OneLayer()
    assert backbone_gflops(backbone, 65, 97) == 65 * 97 * 12 / 1e9
    backbone.size_divisibility = 32
    assert padded_size(backbone, 65, 97) == (96, 128)
    assert backbone_gflops(backbone, 65, 97) == 96 * 128 * 12 / 1e9


def count(cfg: CfgNode, *size: int) -> tuple[dict, dict[str, tuple[int, float]]]:
    """The counts, and those of the parts: parameters and multiply-adds."""
    counted = detector_complexity(cfg, size)
    parts = {row["part"]: (row["parameters"], row["gflops"] * 1e9) for row in counted["parts"]}
    total = parts.pop("total")
    assert total == (sum(one for one, _ in parts.values()), pytest.approx(sum(other for _, other in parts.values())))
    with torch.device("meta"), Uninitialized():
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = "meta"
        assert total[0] == sum(parameter.numel() for parameter in build_model(cfg).parameters())
    return counted, parts


@pytest.mark.slow
def test_faster_rcnn_with_fpn() -> None:
    counted, parts = count(read_config(FPN, []), 100, 120)
    assert (counted["size"], counted["padded"], counted["proposals"]) == ((100, 120), (128, 128), 50)
    assert list(parts) == ["backbone", "FPN", "RPN", "heads"]
    # 1x1 convolutions of the backbone's maps, and a 3x3 at each level
    maps = {64: 32**2, 128: 16**2, 256: 8**2, 512: 4**2}
    fpn = sum(size * 64 * (channels + 9 * 64) for channels, size in maps.items())
    assert parts["FPN"] == (sum(64 * (channels + 1) + 9 * 64**2 + 64 for channels in maps), pytest.approx(fpn))
    # FPN 64 wide, three anchors: a 3x3 convolution, then scores and four numbers a box, on p2 to p6
    positions = 32**2 + 16**2 + 8**2 + 4**2 + 2**2
    rpn = positions * (9 * 64 * 64 + 15 * 64)
    assert parts["RPN"] == (9 * 64 * 64 + 64 + 15 * (64 + 1), pytest.approx(rpn))
    # for each of 50 proposals, two layers of 256, five scores, four numbers a box for each of four classes
    heads = 7 * 7 * 64 * 256 + 256 * 256 + 256 * (5 + 16)
    assert parts["heads"] == (heads + 256 + 256 + 5 + 16, pytest.approx(50 * heads))


@pytest.mark.slow
def test_faster_rcnn_c4() -> None:
    counted, parts = count(read_config(FPN, [*C4, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "14"]), 65, 64)
    assert (counted["padded"], counted["proposals"]) == ((65, 64), 7)
    assert list(parts) == ["backbone", "RPN", "heads"]
    # six anchors on a map of 5x4
    assert parts["RPN"][1] == pytest.approx(20 * (9 * 256 * 256 + 5 * 6 * 256))
    # res5 on 14x14, halved by its first 1x1 convolutions; SE; then five scores and sixteen numbers
    first = 49 * (256 * 128 + 9 * 128 * 128 + 128 * 512 + 256 * 512)
    others = 2 * 49 * (512 * 128 + 9 * 128 * 128 + 128 * 512)
    assert parts["heads"][1] == pytest.approx(7 * (first + others + 3 * 2 * 512 * 32 + 512 * (5 + 16)))


@pytest.mark.slow
def test_retinanet() -> None:
    cfg = read_config(FPN, RETINANET)
    counted, parts = count(cfg, 64, 64)
    assert counted["proposals"] is None
    assert list(parts) == ["backbone", "FPN", "head"]
    positions = 8**2 + 4**2 + 2**2 + 1 + 1
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    per_position = len(anchors.SIZES[0]) * len(anchors.ASPECT_RATIOS[0])
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    layers = 2 * 2 * 9 * channels**2 + 9 * channels * per_position * (3 + 4)
    assert parts["head"][1] == pytest.approx(positions * layers)


@pytest.mark.parametrize(
    ("overrides", "code", "named"),
    [
        (["MODEL.MASK_ON", "True"], "model.not_counted", "MODEL.MASK_ON"),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, False, True]"], "model.not_counted", "DEFORM_ON"),
    ],
)
def test_other_detectors_are_refused(overrides, code, named) -> None:
    with raises(code, named):
        detector_complexity(read_config(FPN, overrides), (64, 64))


@pytest.mark.slow
def test_the_tool_prints_and_writes(run_script, tmp_path, capsys) -> None:
    file = tmp_path / "counts.json"
    overrides = ["MODEL.RPN.POST_NMS_TOPK_TEST", 9, "INPUT.MIN_SIZE_TEST", 64]
    run_script("analyze.py", "complexity", "--json", file, "--config-file", FPN, *overrides)
    shown = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert [row["part"] for row in content["parts"]] == ["backbone", "FPN", "RPN", "heads", "total"]
    for row in content["parts"]:
        assert f"{row['parameters'] / 1e6:.3f}" in shown
        assert f"{row['gflops']:.3f}" in shown
    assert "64×85, padded to 64×96, and 9 proposals" in shown
