import detectron2.export.torchscript  # noqa: F401  (makes detectron2's ResNet and FPN scriptable)
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model, build_resnet_backbone
from torch import nn

from se_detection import SEConfig, create_backbone, create_res5
from se_detection.config.meta_device import Uninitialized
from se_detection.errors import UserError
from se_detection.modeling import se_resnet

from ..helpers import raises, randomize_norms, with_random_weights

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
        {"NORM": "FrozenBN", "RES5_DILATION": 2},
        pytest.param({"DEPTH": 18, "RES2_OUT_CHANNELS": 64}, marks=pytest.mark.slow),
        {"NORM": "GN", "STRIDE_IN_1X1": False, "NUM_GROUPS": 2, "WIDTH_PER_GROUP": 16},
        pytest.param({"DEPTH": 101, "OUT_FEATURES": ["stem", "res4"]}, marks=pytest.mark.slow),
    ],
)
def test_without_se_equals_detectron2(resnets) -> None:
    cfg = config(**{"DEPTH": 50, "RES2_OUT_CHANNELS": 64, "STEM_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 32} | resnets)
    cfg.MODEL.SE.STAGES = []
    ours, theirs = build_backbone(cfg), randomize_norms(build_resnet_backbone(cfg, RGB))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 33, 48)
    expected = theirs(x)
    assert ours.output_shape() == theirs.output_shape()
    for name, feature in ours(x).items():
        assert torch.equal(feature, expected[name]), name


@pytest.mark.parametrize(
    ("name", "millions"),
    # timm's counts of the classifiers with 1000 classes, which are the paper's Table 2 models
    [
        ("se_resnet50", 28.09),
        ("se_resnext50_32x4d", 27.56),
        pytest.param("senet154", 115.09, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(name, millions) -> None:
    with torch.device("meta"), Uninitialized():
        model = create_backbone(name, num_classes=1000, out_features=("res5", "linear"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("depth", "channels"), [(34, (64, 512)), (50, (256, 2048))])
def test_extra_parameters_are_the_papers(depth, channels) -> None:
    """(2 / r) sum over stages of N C^2 without biases (Sec. 4, equation 5)."""
    with torch.device("meta"), Uninitialized():
        plain = create_backbone(f"resnet{depth}")
        gated = create_backbone(f"se_resnet{depth}", se=SEConfig(bias=False))
    extra = sum(p.numel() for p in gated.parameters()) - sum(p.numel() for p in plain.parameters())
    widths = [channels[0] * 2**stage for stage in range(4)]
    assert widths[-1] == channels[1]
    assert extra == sum(2 * n * c**2 // 16 for n, c in zip((3, 4, 6, 3), widths, strict=True))


@pytest.mark.slow
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
    with torch.device("meta"), Uninitialized():
        backbone = build_backbone(cfg)
    hidden = {
        name: block.se.fc1.out_channels for name in STAGES for block in getattr(backbone, name) if hasattr(block, "se")
    }
    assert hidden == {"res3": 512 // 8, "res5": 2048 // 32}


@pytest.mark.parametrize("freeze_at", [0, 1, 5])
def test_freeze_at_equals_detectron2s(freeze_at) -> None:
    cfg = config(NORM="BN", RES2_OUT_CHANNELS=64, WIDTH_PER_GROUP=16)
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


@pytest.mark.slow
def test_torchscript() -> None:
    cfg = config(DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    cfg.MODEL.BACKBONE.NAME = "build_se_resnet_fpn_backbone"
    backbone = build_backbone(cfg).eval()
    x = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(backbone)(x), backbone(x))


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
    with torch.device("meta"), Uninitialized():
        ours = BACKBONE_REGISTRY.get(builder)(cfg, RGB)
        theirs = BACKBONE_REGISTRY.get(builder.replace("_se_", "_"))(cfg, RGB)
    assert list(ours.output_shape()) == levels
    assert ours.output_shape() == theirs.output_shape()
    assert set(ours.state_dict()) - set(theirs.state_dict()) == {key for key in ours.state_dict() if ".se." in key}


def test_a_c4_detector_has_se_in_res5() -> None:
    cfg = config(OUT_FEATURES=["res4"])
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    with torch.device("meta"), raises("model.plain_res5", "SERes5ROIHeads"):
        build_model(cfg)


def test_c4_head_without_se_equals_detectron2s() -> None:
    # detectron2's heads never dilate res5.
    cfg = config(OUT_FEATURES=["res4"], NORM="FrozenBN", RES2_OUT_CHANNELS=64, WIDTH_PER_GROUP=16, RES5_DILATION=2)
    cfg.MODEL.BACKBONE.FREEZE_AT = 5
    cfg.MODEL.SE.STAGES = ["res2"]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    theirs = build_model(cfg).roi_heads.res5
    cfg.MODEL.ROI_HEADS.NAME = "SERes5ROIHeads"
    ours = build_model(cfg).roi_heads.res5
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 256, 14, 14)
    assert torch.equal(ours(x), theirs(x))
    assert all(parameter.requires_grad for parameter in ours.parameters())


BASIC = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"MODEL.RESNETS.DEPTH": 51}, "MODEL.RESNETS.DEPTH: 51 is not one of 18, 34, 50, 101, 152, 154"),
        ({"MODEL.RESNETS.DEPTH": 18}, "RES2_OUT_CHANNELS: 256 is not supported with DEPTH 18; use 64"),
        (BASIC | {"MODEL.RESNETS.NUM_GROUPS": 32}, "NUM_GROUPS"),
        (BASIC | {"MODEL.RESNETS.RES5_DILATION": 2}, "RES5_DILATION"),
        (BASIC | {"MODEL.SE.POSITION": "3x3"}, "MODEL.SE.POSITION"),
        ({"MODEL.RESNETS.STEM_TYPE": "big"}, "MODEL.RESNETS.STEM_TYPE: 'big' is not one of basic, caffe, deep"),
        ({"MODEL.SE.REDUCTION": 512}, "512 is too large"),
    ],
)
def test_bad_values_are_refused(changes, named) -> None:
    cfg = config()
    cfg.merge_from_list([part for change in changes.items() for part in change])
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build_backbone(cfg)
    assert named in caught.value.message


def test_deformable_convolution() -> None:
    cfg = config(DEFORM_ON_PER_STAGE=[False, True, True, True])
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        with raises("model.no_compiled_operators", "DEFORM_ON_PER_STAGE"):
            build_backbone(cfg)
    else:
        cfg.MODEL.SE.STAGES = []
        ours, theirs = build_backbone(cfg), build_resnet_backbone(cfg, RGB)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(ours(x)["res5"], theirs(x)["res5"])


@pytest.mark.parametrize("freeze_at", [0, 2])
def test_freeze_at_of_create_backbone_equals_detectron2s(freeze_at) -> None:
    ours = create_backbone("resnet18", freeze_at=freeze_at)
    cfg = config(DEPTH=18, RES2_OUT_CHANNELS=64)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    theirs = build_resnet_backbone(cfg, RGB)
    trained = [{key for key, parameter in net.named_parameters() if parameter.requires_grad} for net in (ours, theirs)]
    assert trained[0] == trained[1]
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]


@pytest.mark.slow
def test_a_named_backbone_refuses_partial_weights() -> None:
    plain = create_backbone("resnet18", num_classes=5, out_features=("res5", "linear")).state_dict()
    del plain["linear.weight"], plain["linear.bias"]
    with raises("weights.plain_backbone"):
        create_backbone("se_resnet18").load_state_dict(plain, strict=False)
    # A classifier may be loaded without its last layer.
    classifier = create_backbone("resnet18", num_classes=5, out_features=("res5", "linear"))
    assert classifier.load_state_dict(plain, strict=False).missing_keys == ["linear.weight", "linear.bias"]


@pytest.mark.slow
def test_create_res5_equals_res5_of_the_backbone() -> None:
    backbone = with_random_weights(lambda: create_backbone("se_resnet50", out_features=("res4", "res5"))).eval()
    with Uninitialized():
        res5 = create_res5("se_resnet50").eval()
    weights = backbone.res5.state_dict()
    res5.load_state_dict(weights)
    x = torch.randn(1, 1024, 8, 6)
    with torch.no_grad():
        assert torch.equal(res5(x), backbone.res5(x))
    assert res5(x).shape == (1, 2048, 4, 3)
    del weights["1.se.fc1.weight"]
    with raises("weights.partial_backbone", "1.se.fc1.weight"):
        res5.load_state_dict(weights, strict=False)


def test_a_config_without_our_keys_is_refused() -> None:
    cfg = config()
    del cfg.MODEL["SE"]
    with raises("config.no_se_keys", "MODEL.SE", "add_se_config"):
        build_backbone(cfg)


BACKBONES = {
    "se_resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "se_resnet50": {"DEPTH": 50},
    "se_resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "STRIDE_IN_1X1": False},
    "senet154": {
        "DEPTH": 154,
        "NUM_GROUPS": 64,
        "WIDTH_PER_GROUP": 4,
        "STEM_OUT_CHANNELS": 128,
        "STRIDE_IN_1X1": False,
    },
}


@pytest.mark.parametrize(
    "name", [name if name.endswith("18") else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
def test_backbones_as_fpn_c4_and_retinanet(name, monkeypatch) -> None:
    """Built from a config, each has the layers of the backbone by name and detectron2's levels."""
    if name == "senet154":
        # Instead of 36 blocks in res4.
        monkeypatch.setitem(se_resnet.BLOCKS_PER_STAGE, 154, (3, 4, 6, 3))
    with torch.device("meta"), Uninitialized():
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
