import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from se_detection import SEConfig, UserError, create_backbone, model_zoo
from se_detection.checkpoint.convert import convert_state_dict
from se_detection.pretrain.classifier import Classifier, add_stochastic_depth, backbone_config
from se_detection.pretrain.pretrain_config import load_pretrain_config

OPTIONS = {
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "channel_order": "RGB",
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "stochastic_depth": 0.0,
    "bf16": False,
    "channels_last": False,
}


def on_meta(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.DEVICE = "meta"
    return cfg


def make_batch(count: int = 4, size: int = 32) -> list[dict]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 3, size, size), dtype=np.uint8)
    return [{"image": image, "label": number % 3} for number, image in enumerate(pixels)]


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_sets_the_precision_of_the_backbone(bf16) -> None:
    model = Classifier(create_backbone("resnet18"), 3, **{**OPTIONS, "bf16": bf16})
    dtypes = []
    model.backbone.register_forward_hook(lambda module, inputs, output: dtypes.append(output["res5"].dtype))
    model.eval()(make_batch())
    assert dtypes == [torch.bfloat16 if bf16 else torch.float32]


@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_equal_torchvisions(channels_last) -> None:
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    ours = Classifier(create_backbone("resnet18"), 5, **{**OPTIONS, "channels_last": channels_last}).eval()
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
    options = {
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "channel_order": cfg.INPUT.FORMAT,
    }
    batch = make_batch(1)
    read = batch[0]["image"][::-1] if order == "BGR" else batch[0]["image"]
    theirs = build_model(cfg).preprocess_image([{"image": torch.from_numpy(read.copy())}]).tensor
    ours = Classifier(create_backbone("resnet18"), 3, **{**OPTIONS, **options}).preprocess(batch)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_timms(smoothing) -> None:
    model = Classifier(create_backbone("resnet18", norm="GN"), 3, **{**OPTIONS, "label_smoothing": smoothing})
    batch = make_batch()
    logits = model.logits(model.preprocess(batch))
    labels = torch.tensor([item["label"] for item in batch])
    theirs = LabelSmoothingCrossEntropy(smoothing)(logits, labels)
    torch.testing.assert_close(model(batch)["loss_cls"], theirs)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixup_and_cutmix_equal_timms(mixup, cutmix) -> None:
    options = {**OPTIONS, "label_smoothing": 0.1, "mixup": mixup, "cutmix": cutmix}
    model = Classifier(create_backbone("resnet18", norm="GN"), 3, **options)
    batch = make_batch()
    np.random.seed(0)
    loss = model(batch)["loss_cls"]
    np.random.seed(0)
    mixer = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=3)
    images, targets = mixer(model.preprocess(batch), torch.tensor([item["label"] for item in batch]))
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(model.logits(images), targets))


@pytest.mark.parametrize("position", [None, "standard", "pre", "post", "identity", "3x3"])
def test_stochastic_depth_drops_the_residual_branch(position) -> None:
    """In training with a rate of 0.5, the branch of each image is dropped or doubled."""
    name = "resnet50" if position is None else "se_resnet50"
    backbone = create_backbone(name, norm="GN", se=None if position is None else SEConfig(position=position))
    block = backbone.res5[-1]
    x = torch.randn(16, 2048, 4, 4).relu()
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
    add_stochastic_depth(create_backbone("resnet50"), 0.2)
    theirs = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in ("layer1", "layer2", "layer3", "layer4")
        for block in getattr(timm.create_model("resnet50", drop_path_rate=0.2), stage)
    ]
    assert len(rates) == len(theirs)
    assert rates[-1] == pytest.approx(theirs[-1]) == pytest.approx(0.2)
    np.testing.assert_allclose(np.diff(rates), 0.2 / 16)


def test_other_backbones_are_refused() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_R_18_FPN")
    cfg.MODEL.BACKBONE.NAME = "build_dla_fpn_backbone"
    with pytest.raises(UserError, match="can't be pre-trained; choose from"):
        backbone_config(cfg)


@pytest.mark.parametrize("name", [name for name in model_zoo.names() if name.startswith(("Ablations", "Study"))])
def test_every_ablation_can_be_pre_trained(arguments, name) -> None:
    """All parameters are trained, and they are those of the detector's backbone."""
    cfg = load_pretrain_config(arguments(config=name))
    with torch.device("meta"):
        model = Classifier.from_cfg(cfg)
        detector = build_model(on_meta(model_zoo.get_config(name)))
    assert all(parameter.requires_grad for parameter in model.parameters())
    # FrozenBN has no num_batches_tracked.
    backbones = [
        {key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")}
        for backbone in (model.backbone, detector.backbone.bottom_up)
    ]
    assert backbones[0] == backbones[1]
