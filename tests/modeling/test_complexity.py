import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models import get_model_weights

from se_detection import create_backbone, model_zoo
from se_detection.modeling.complexity import backbone_gflops, count_parameters, image_size, multiply_adds, padded_size


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
    # weights and biases of both convolutions, two norms, two linear layers; FrozenBN has buffers
    assert count_parameters(model) == (216 + 8) + (144 + 8) + 2 * (8 + 8) + 2 * (40 + 5)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_statistics_are_not_changed(training) -> None:
    model = Countable().train(training)
    multiply_adds(model, torch.ones(1, 3, 8, 8))
    assert model.training == model.stem[1].training == training
    assert model.stem[1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_counts_equal_torchvisions(name) -> None:
    """torchvision's models carry their 10⁹ multiply-adds, stride in the 3x3 convolutions, rounded to 0.001."""
    meta = get_model_weights(name).IMAGENET1K_V1.meta
    backbone = create_backbone(name, num_classes=1000, out_features=("res5", "linear"))
    assert multiply_adds(backbone, torch.zeros(1, 3, 224, 224))[""] / 1e9 == pytest.approx(meta["_ops"], abs=0.001)
    assert count_parameters(backbone) == meta["num_params"]


def test_images_are_padded_as_in_detectron2() -> None:
    cfg = get_cfg()
    assert image_size(cfg) == (800, 1067)
    cfg.INPUT.MAX_SIZE_TEST = 1000
    assert image_size(cfg) == (800, 1000)
    fpn = build_backbone(model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN"))
    assert backbone_gflops(fpn, 65, 97) == multiply_adds(fpn, torch.zeros(1, 3, 96, 128))[""] / 1e9
    # Without FPN there is no padding.
    assert padded_size(fpn.bottom_up, 65, 97) == (65, 97)
