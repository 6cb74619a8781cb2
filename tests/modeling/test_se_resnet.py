import copy

import detectron2.export.torchscript  # noqa: F401  (makes detectron2's ResNet and FPN scriptable)
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model, build_resnet_backbone
from torch import nn

from se_detection import SEConfig, create_backbone, create_res5
from se_detection.errors import UserError

from ..helpers import randomize_norms

STAGES = ("res2", "res3", "res4", "res5")
RGB = ShapeSpec(channels=3)


def config(**resnets: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


@pytest.mark.parametrize(
    "resnets",
    [
        {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
        {"DEPTH": 50},
        {"DEPTH": 50, "NORM": "FrozenBN"},
        {"DEPTH": 50, "NORM": "GN"},
        {"DEPTH": 50, "RES5_DILATION": 2},
        {"DEPTH": 50, "STRIDE_IN_1X1": False, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
        {"DEPTH": 50, "RES2_OUT_CHANNELS": 128, "STEM_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 32},
        {"DEPTH": 101, "OUT_FEATURES": ["stem", "res4"]},
    ],
)
def test_without_se_equals_detectron2(resnets) -> None:
    cfg = config(**resnets)
    cfg.MODEL.SE.STAGES = []
    ours, theirs = build_backbone(cfg), randomize_norms(build_resnet_backbone(cfg, RGB))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 65, 96)
    expected = theirs(x)
    assert ours.output_shape() == theirs.output_shape()
    for name, feature in ours(x).items():
        assert torch.equal(feature, expected[name]), name


@pytest.mark.parametrize(
    ("name", "millions"),
    # timm's counts of the classifiers with 1000 classes, which are the paper's Table 2 models
    [
        ("se_resnet50", 28.09),
        ("se_resnet101", 49.33),
        ("se_resnet152", 66.82),
        ("se_resnext50_32x4d", 27.56),
        ("se_resnext101_32x4d", 48.96),
        ("senet154", 115.09),
    ],
)
def test_parameter_counts(name, millions) -> None:
    with torch.device("meta"):
        model = create_backbone(name, num_classes=1000, out_features=("res5", "linear"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("depth", "channels"), [(18, (64, 512)), (34, (64, 512)), (50, (256, 2048))])
def test_extra_parameters_are_the_papers(depth, channels) -> None:
    """(2 / r) sum over stages of N C^2 without biases (Sec. 4, equation 5)."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    with torch.device("meta"):
        plain = create_backbone(f"resnet{depth}")
        gated = create_backbone(f"se_resnet{depth}", se=SEConfig(bias=False))
    extra = sum(p.numel() for p in gated.parameters()) - sum(p.numel() for p in plain.parameters())
    widths = [channels[0] * 2**stage for stage in range(4)]
    assert widths[-1] == channels[1]
    assert extra == sum(2 * n * c**2 // 16 for n, c in zip(blocks, widths, strict=True))


@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
def test_strides_and_shapes(layout) -> None:
    backbone = create_backbone("se_resnet18", layout=layout, out_features=("stem", *STAGES))
    features = backbone(torch.randn(1, 3, 128, 64))
    for name, spec in backbone.output_shape().items():
        assert features[name].shape == (1, spec.channels, 128 // spec.stride, 64 // spec.stride)
    assert [spec.stride for spec in backbone.output_shape().values()] == [4, 4, 8, 16, 32]


def test_stages_and_reductions_are_those_of_the_config() -> None:
    cfg = config()
    cfg.MODEL.SE.STAGES = ["res3", "res5"]
    cfg.MODEL.SE.REDUCTION_PER_STAGE = [1, 8, 1, 32]
    backbone = build_backbone(cfg)
    hidden = {
        name: block.se.fc1.out_channels for name in STAGES for block in getattr(backbone, name) if hasattr(block, "se")
    }
    assert hidden == {"res3": 512 // 8, "res5": 2048 // 32}


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freeze_at_equals_detectron2s(freeze_at) -> None:
    cfg = config(NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.SE.STAGES = ["res2", "res5"]
    ours, theirs = build_backbone(cfg), build_resnet_backbone(cfg, RGB)
    trainable = {key: parameter.requires_grad for key, parameter in ours.named_parameters()}
    for key, parameter in theirs.named_parameters():
        assert trainable[key] == parameter.requires_grad, key
    for stage, number in (("res2", 2), ("res5", 5)):
        gates = [trainable[key] for key in trainable if key.startswith(stage) and ".se." in key]
        assert gates
        assert all(gate == (freeze_at < number) for gate in gates)
    frozen = [type(m) for m in ours.res2.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert set(frozen) == {FrozenBatchNorm2d if freeze_at >= 2 else nn.BatchNorm2d}


@pytest.mark.parametrize("position", ["standard", "pre", "post", "identity", "3x3"])
def test_every_parameter_gets_a_gradient(position) -> None:
    backbone = create_backbone("se_resnet50", se=SEConfig(position=position))
    features = backbone(torch.randn(2, 3, 64, 64))
    sum((feature**2).mean() for feature in features.values()).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None, key
        # The gradient of a bias before BN, or before a ReLU that is 0 everywhere, is 0.
        assert torch.isfinite(parameter.grad).all(), key
        if parameter.dim() == 4:
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("position", ["standard", "pre", "post", "identity", "3x3"])
def test_position_is_the_papers_figure_5(position) -> None:
    """Each position against the layers of the block, combined as in the figure."""
    block = randomize_norms(create_backbone("se_resnet50", se=SEConfig(position=position))).eval().res3[0]
    x = torch.randn(2, 256, 9, 7)
    with torch.no_grad():
        branch_input = block.se(x) if position == "pre" else x
        inner = block.conv2(block.conv1(branch_input).relu())
        residual = block.conv3((block.se(inner) if position == "3x3" else inner).relu())
        shortcut = block.shortcut(x)
        if position == "standard":
            residual = block.se(residual)
        if position == "identity":
            shortcut = block.se(shortcut)
        expected = (residual + shortcut).relu()
        if position == "post":
            expected = block.se(expected)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("builder", ["build_se_resnet_backbone", "build_se_resnet_fpn_backbone"])
def test_torchscript(builder) -> None:
    cfg = config(DEPTH=50)
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    cfg.MODEL.BACKBONE.NAME = builder
    backbone = build_backbone(cfg).eval()
    scripted = torch.jit.script(backbone)
    x = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        expected = backbone(x)
        for name, feature in scripted(x).items():
            torch.testing.assert_close(feature, expected[name])


@pytest.mark.parametrize(
    ("builder", "levels"),
    [
        ("build_se_resnet_fpn_backbone", ["p2", "p3", "p4", "p5", "p6"]),
        ("build_retinanet_se_resnet_fpn_backbone", ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_fpn_levels_equal_detectron2s(builder, levels) -> None:
    cfg = config(DEPTH=50)
    cfg.MODEL.FPN.IN_FEATURES = [f"res{level[1]}" for level in levels if int(level[1]) <= 5]
    ours = BACKBONE_REGISTRY.get(builder)(cfg, RGB)
    theirs = BACKBONE_REGISTRY.get(builder.replace("_se_", "_"))(cfg, RGB)
    assert list(ours.output_shape()) == levels
    assert ours.output_shape() == theirs.output_shape()
    assert set(ours.state_dict()) - set(theirs.state_dict()) == {key for key in ours.state_dict() if ".se." in key}
    features = ours(torch.randn(1, 3, 128, 128))
    assert {name: feature.shape[-1] for name, feature in features.items()} == {
        name: 128 // spec.stride for name, spec in ours.output_shape().items()
    }


def test_a_c4_detector_has_se_in_res5() -> None:
    cfg = config(OUT_FEATURES=["res4"])
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "SERes5ROIHeads"
    model = build_model(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    plain = build_model(cfg)
    added = set(model.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(model.state_dict())
    assert {key.split(".se.")[0] for key in added if key.startswith("roi_heads")} == {
        f"roi_heads.res5.{block}" for block in range(3)
    }
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_backbone"
    with pytest.raises(UserError, match="SERes5ROIHeads"):
        build_model(cfg)


def test_c4_head_without_se_equals_detectron2s() -> None:
    cfg = config(OUT_FEATURES=["res4"], NORM="FrozenBN")
    cfg.MODEL.SE.STAGES = ["res2"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    theirs = build_model(cfg).roi_heads.res5
    cfg.MODEL.ROI_HEADS.NAME = "SERes5ROIHeads"
    ours = build_model(cfg).roi_heads.res5
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 1024, 14, 14)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.RESNETS.DEPTH": 51}, "MODEL.RESNETS.DEPTH: 51 is not one of 18, 34, 50, 101, 152, 154"),
        ({"MODEL.RESNETS.DEPTH": 18}, "RES2_OUT_CHANNELS: 256 is not supported with DEPTH 18; use 64"),
        ({"MODEL.RESNETS.RES5_DILATION": 3}, "RES5_DILATION: 3 is not 1 or 2"),
        ({"MODEL.SE.GATE": "swish"}, "MODEL.SE.GATE: 'swish' is not one of sigmoid, tanh, relu, hardsigmoid"),
        ({"MODEL.SE.POSITION": "before"}, "MODEL.SE.POSITION: 'before' is not one of standard, pre"),
        ({"MODEL.SE.SQUEEZE": "mean"}, "MODEL.SE.SQUEEZE: 'mean' is not one of avg, max"),
        ({"MODEL.RESNETS.STEM_TYPE": "big"}, "MODEL.RESNETS.STEM_TYPE: 'big' is not one of basic, caffe, deep"),
        ({"MODEL.SE.STAGES": ["res1"]}, "MODEL.SE.STAGES: 'res1' is not one of res2"),
        ({"MODEL.SE.REDUCTION": 0}, "MODEL.SE.REDUCTION: 0 is not a whole number of at least 1"),
        ({"MODEL.SE.REDUCTION": 512}, "MODEL.SE in res2: a reduction ratio of 512 is too large for 256 channels"),
        ({"MODEL.SE.REDUCTION_PER_STAGE": [16, 16]}, "REDUCTION_PER_STAGE: .* has 2 values; give one for each"),
        (
            {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.SE.POSITION": "3x3"},
            "MODEL.SE.POSITION: 3x3 needs bottleneck blocks, and DEPTH 18 has none",
        ),
    ],
)
def test_bad_values_are_refused_in_one_line(changes, message) -> None:
    cfg = config()
    cfg.merge_from_list([part for change in changes.items() for part in change])
    with pytest.raises(UserError, match=message) as caught:
        build_backbone(cfg)
    assert "\n" not in str(caught.value)


def test_deformable_convolution() -> None:
    cfg = config(DEFORM_ON_PER_STAGE=[False, True, True, True])
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="DEFORM_ON_PER_STAGE: deformable convolution needs detectron2's compiled"):
            build_backbone(cfg)
    else:
        cfg.MODEL.SE.STAGES = []
        ours, theirs = build_backbone(cfg), build_resnet_backbone(cfg, RGB)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(ours(x)["res5"], theirs(x)["res5"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet50", "se": SEConfig()}, "'resnet50' is a plain backbone; did you mean 'se_resnet50'"),
        ({"name": "senet154", "layout": "torchvision"}, "'senet154' exists only in the caffe layout"),
        ({"name": "se_resnet50", "layout": "tf"}, "layout: 'tf' is not one of torchvision, caffe"),
        ({"name": "se_resnet50", "out_features": ["res9"]}, "out_features: \\['res9'\\] is not a selection of stem"),
        ({"name": "se_resnet50", "out_features": ["linear"]}, "'linear' needs num_classes"),
        ({"name": "se_resnet50", "freeze_at": 6}, "freeze_at: 6 is not from 0 \\(nothing\\) to 5 \\(stem to res5\\)"),
    ],
)
def test_create_backbone_refuses_bad_arguments(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone(**arguments)


@pytest.mark.parametrize("freeze_at", [0, 2, 5])
def test_freeze_at_of_create_backbone_equals_detectron2s(freeze_at) -> None:
    ours = create_backbone("resnet18", freeze_at=freeze_at)
    cfg = config(DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    theirs = build_resnet_backbone(cfg, RGB)
    trained = [{key for key, parameter in net.named_parameters() if parameter.requires_grad} for net in (ours, theirs)]
    assert trained[0] == trained[1]
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]


def test_a_named_backbone_refuses_partial_weights() -> None:
    plain = create_backbone("resnet18").state_dict()
    with pytest.raises(UserError, match="backbone is plain and the config's has SE"):
        create_backbone("se_resnet18").load_state_dict(plain, strict=False)
    # A classifier may be loaded without its last layer.
    classifier = create_backbone("resnet18", num_classes=5, out_features=("res5", "linear"))
    assert classifier.load_state_dict(plain, strict=False).missing_keys == ["linear.weight", "linear.bias"]


def test_create_res5_equals_res5_of_the_backbone() -> None:
    backbone = randomize_norms(create_backbone("se_resnet50", out_features=("res4", "res5"))).eval()
    res5 = create_res5("se_resnet50").eval()
    weights = backbone.res5.state_dict()
    res5.load_state_dict(weights)
    x = torch.randn(1, 1024, 8, 6)
    with torch.no_grad():
        assert torch.equal(res5(x), backbone.res5(x))
    assert res5(x).shape == (1, 2048, 4, 3)
    del weights["1.se.fc1.weight"]
    with pytest.raises(
        UserError, match=r"1 of the backbone's \d+ tensors are missing or have another shape \(1.se.fc1.weight"
    ):
        res5.load_state_dict(weights, strict=False)


def test_a_config_without_our_keys_is_refused() -> None:
    cfg = config()
    before = copy.deepcopy(cfg)
    del before.MODEL["SE"]
    with pytest.raises(UserError, match="import se_detection before get_cfg"):
        build_backbone(before)


BACKBONES = {
    "se_resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "se_resnet34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "se_resnet50": {"DEPTH": 50},
    "se_resnet101": {"DEPTH": 101},
    "se_resnet152": {"DEPTH": 152},
    "se_resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False},
    "se_resnext101_32x4d": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False},
    "senet154": {
        "DEPTH": 154,
        "NUM_GROUPS": 64,
        "WIDTH_PER_GROUP": 4,
        "STEM_OUT_CHANNELS": 128,
        "STRIDE_IN_1X1": False,
    },
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_as_fpn_c4_and_retinanet(name) -> None:
    """Built from a config, each has the layers of the backbone by name and detectron2's levels."""
    with torch.device("meta"):
        layers = {key: tensor.shape for key, tensor in create_backbone(name, layout="caffe").state_dict().items()}
        x = torch.empty(1, 3, 128, 128)
        for builder, strides in [
            ("build_se_resnet_fpn_backbone", [4, 8, 16, 32, 64]),
            ("build_retinanet_se_resnet_fpn_backbone", [8, 16, 32, 64, 128]),
        ]:
            cfg = config(**BACKBONES[name])
            cfg.MODEL.BACKBONE.NAME = builder
            cfg.MODEL.RESNETS.STEM_TYPE = "deep" if name == "senet154" else "caffe"
            cfg.MODEL.FPN.IN_FEATURES = list(STAGES) if strides[0] == 4 else list(STAGES[1:])
            backbone = build_backbone(cfg)
            assert {key: tensor.shape for key, tensor in backbone.bottom_up.state_dict().items()} == layers
            assert [128 // feature.shape[-1] for feature in backbone(x).values()] == strides
        cfg = config(**BACKBONES[name], OUT_FEATURES=["res4"])
        cfg.MODEL.RESNETS.STEM_TYPE = "deep" if name == "senet154" else "caffe"
        cfg.MODEL.ROI_HEADS.NAME = "SERes5ROIHeads"
        cfg.MODEL.DEVICE = "meta"
        model = build_model(cfg)
        c4 = {key: tensor.shape for key, tensor in model.backbone.state_dict().items()}
        res5 = {f"res5.{key}": tensor.shape for key, tensor in model.roi_heads.res5.state_dict().items()}
        assert c4 | res5 == layers
        assert model.backbone(x)["res4"].shape[-1] == 8
        assert model.roi_heads.res5(model.backbone(x)["res4"]).shape[-1] == 4
