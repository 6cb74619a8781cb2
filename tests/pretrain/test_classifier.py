import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from se_detection import SEConfig, create_backbone, model_zoo
from se_detection.checkpoint.convert import convert_state_dict
from se_detection.config.meta_device import Uninitialized
from se_detection.config.se_config import STAGES
from se_detection.modeling.blocks import SEBottleneckBlock
from se_detection.pretrain.classifier import Classifier, add_stochastic_depth, backbone_config, build_classifier
from se_detection.pretrain.pretrain_config import PRETRAIN, load_pretrain_config

from ..helpers import raises

STATISTICS = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}


def make_batch(count: int = 4, size: int = 32) -> list[dict]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 3, size, size), dtype=np.uint8)
    return [{"image": image, "label": number % 3} for number, image in enumerate(pixels)]


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_sets_the_precision_of_the_backbone(bf16) -> None:
    model = Classifier(create_backbone("resnet18"), 3, **STATISTICS, bf16=bf16)
    dtypes = []
    model.backbone.register_forward_hook(lambda module, inputs, output: dtypes.append(output["res5"].dtype))
    model.eval()(make_batch())
    assert dtypes == [torch.bfloat16 if bf16 else torch.float32]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_logits_equal_torchvisions(memory_format) -> None:
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    ours = Classifier(create_backbone("resnet18"), 5, **STATISTICS, memory_format=memory_format).eval()
    ours.backbone.load_state_dict(convert_state_dict(theirs.state_dict(), "torchvision"), strict=False)
    ours.linear.load_state_dict(theirs.fc.state_dict())
    batch = make_batch()
    pixels = torch.from_numpy(np.stack([item["image"] for item in batch])) / 255
    images = torchvision.transforms.functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(ours(batch), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_preprocessing_equals_the_detectors(order) -> None:
    """detectron2 reads an image in the config's channel order and then subtracts the mean."""
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "cpu", order
    batch = make_batch(1)
    read = batch[0]["image"][::-1] if order == "BGR" else batch[0]["image"]
    theirs = build_model(cfg).preprocess_image([{"image": torch.from_numpy(read.copy())}]).tensor
    cfg.PRETRAIN = CfgNode(dict(PRETRAIN))
    ours = build_classifier(cfg, 3).preprocess(batch)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("smoothing", "mixup", "cutmix"),
    [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.1, 0.2, 0.0), (0.1, 0.0, 1.0), (0.1, 0.2, 1.0)],
)
def test_the_loss_equals_timms(arguments, smoothing, mixup, cutmix) -> None:
    recipe = {"LABEL_SMOOTHING": smoothing, "MIXUP": mixup, "CUTMIX": cutmix}
    words = [word for key, value in recipe.items() for word in (f"PRETRAIN.{key}", str(value))]
    cfg = load_pretrain_config(arguments(*words, "MODEL.RESNETS.NORM", "GN"))
    model = build_classifier(cfg, 3)
    batch = make_batch()
    labels = torch.tensor([item["label"] for item in batch])
    np.random.seed(0)
    loss = model(batch)["loss_cls"]
    np.random.seed(0)
    images = model.preprocess(batch)
    if mixup or cutmix:
        images, targets = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=3)(images, labels)
        theirs = SoftTargetCrossEntropy()(model.logits(images), targets)
    else:
        theirs = LabelSmoothingCrossEntropy(smoothing)(model.logits(images), labels)
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize("position", [None, "standard", "pre", "post", "identity", "3x3"])
def test_stochastic_depth_drops_the_residual_branch(position) -> None:
    """In training with a rate of 0.5, the branch of each image is dropped or doubled."""
    kind, se = (BottleneckBlock, {}) if position is None else (SEBottleneckBlock, {"se": SEConfig(position=position)})
    backbone = nn.ModuleDict(
        {stage: nn.Sequential(kind(32, 32, bottleneck_channels=32, norm="GN", **se)) for stage in STAGES}
    )
    block = backbone.res5[-1]
    x = torch.randn(16, 32, 4, 4).relu()
    conv3_outputs: list[torch.Tensor] = []
    handle = block.conv3.register_forward_hook(lambda module, inputs, output: conv3_outputs.append(output.clone()))
    with torch.no_grad():
        plain = block(x)
    handle.remove()
    (branch,) = conv3_outputs
    if position == "standard":
        branch = branch * block.se.gate(branch)
    shortcut = block.se(x) if position == "identity" else x

    def expected(factor: float) -> torch.Tensor:
        total = F.relu(shortcut + factor * branch)
        return block.se(total) if position == "post" else total

    torch.testing.assert_close(expected(1), plain)
    add_stochastic_depth(backbone, 0.5)
    backbone.train()
    with torch.no_grad():
        dropped = block(x)
        matches = [
            tuple(bool(torch.allclose(dropped[n], expected(factor)[n], atol=1e-5)) for factor in (0, 2))
            for n in range(len(x))
        ]
        backbone.eval()
        torch.testing.assert_close(block(x), plain)
    assert set(matches) == {(True, False), (False, True)}


def test_stochastic_depth_increases_as_in_timm(monkeypatch) -> None:
    """timm's rate is 0 in the first block; here it is 1/16 of the last block's rate."""
    rates = []
    monkeypatch.setattr("se_detection.pretrain.classifier.DropPath", lambda rate: rates.append(rate) or nn.Identity())
    with torch.device("meta"), Uninitialized():
        add_stochastic_depth(create_backbone("resnet50"), 0.2)
        network = timm.create_model("resnet50", drop_path_rate=0.2)
    theirs = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in ("layer1", "layer2", "layer3", "layer4")
        for block in getattr(network, stage)
    ]
    assert len(rates) == len(theirs)
    assert rates[-1] == pytest.approx(theirs[-1]) == pytest.approx(0.2)
    np.testing.assert_allclose(np.diff(rates), 0.2 / 16)


def test_other_backbones_are_refused() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_R_18_FPN")
    cfg.MODEL.BACKBONE.NAME = "build_dla_fpn_backbone"
    with raises("pretrain.backbone", "build_dla_fpn_backbone", "build_resnet_fpn_backbone"):
        backbone_config(cfg)


# Reductions only differ by a number.
NAMES = [name for name in model_zoo.names() if name.startswith(("Ablations", "Study")) and "reduction" not in name]


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_every_ablation_can_be_pre_trained(arguments, shallow_here, name) -> None:
    """All parameters are trained, and they are those of the detector's backbone."""
    cfg, detector_config = load_pretrain_config(arguments(config=name)), model_zoo.get_config(name)
    detector_config.MODEL.DEVICE = "meta"
    with torch.device("meta"), Uninitialized():
        model, detector = build_classifier(cfg, 3), build_backbone(detector_config)
    assert all(parameter.requires_grad for parameter in model.parameters())
    # FrozenBN has no num_batches_tracked.
    backbones = [
        {key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")}
        for backbone in (model.backbone, detector.bottom_up)
    ]
    assert backbones[0] == backbones[1]
