import copy
from collections.abc import Sequence

import detectron2.model_zoo
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn

from se_detection import create_backbone, model_zoo
from se_detection.config.se_config import STAGES
from se_detection.modeling import se_resnet
from se_detection.modeling.blocks import SEBasicBlock
from se_detection.modeling.fuse.fuse_detector import fuse_for_inference
from se_detection.modeling.fuse.fused_blocks import FusedBlock

from ..helpers import raises, randomize_norms, relative_error, with_random_weights

DEEP = {"RES2_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 16, "STEM_OUT_CHANNELS": 16}  # narrow, for speed
VARIANTS = [
    ({"DEPTH": 50, **DEEP}, {}),
    ({"DEPTH": 50, **DEEP, "NORM": "BN", "STRIDE_IN_1X1": False}, {}),
    ({"DEPTH": 50, **DEEP, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 4}, {}),
    ({"DEPTH": 50, **DEEP, "WIDTH_PER_GROUP": 32, "STEM_OUT_CHANNELS": 32, "NORM": "GN"}, {}),
    ({"DEPTH": 18, "RES2_OUT_CHANNELS": 64}, {}),
    ({"DEPTH": 154, **DEEP, "STEM_TYPE": "deep"}, {}),
    *(({"DEPTH": 50, **DEEP}, {"POSITION": position}) for position in ("pre", "post", "identity", "3x3")),
    *(({"DEPTH": 50, **DEEP}, {"SQUEEZE": squeeze}) for squeeze in ("max", "avgmax", "none")),
    *(({"DEPTH": 50, **DEEP}, {"GATE": gate}) for gate in ("tanh", "relu", "hardsigmoid")),
    ({"DEPTH": 50, **DEEP, "STEM_TYPE": "caffe"}, {"BIAS": False, "STAGES": ["res3"]}),
]


pytestmark = pytest.mark.usefixtures("shallow")


def with_fpn(resnets: dict, se: dict | None = None, stages: Sequence[str] = STAGES) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone" if se is None else "build_se_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.merge_from_list([item for pair in resnets.items() for item in pair])
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = list(stages)
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.SE.REDUCTION = 4
    for key, value in (se or {}).items():
        cfg.MODEL.SE[key] = value
    return randomize_norms(build_backbone(cfg, ShapeSpec(channels=3))).eval()


@pytest.mark.parametrize(
    ("resnets", "se"),
    [
        VARIANTS[0],
        (VARIANTS[4][0], None),
        *(pytest.param(*variant, marks=pytest.mark.slow) for variant in [*VARIANTS[1:], (VARIANTS[0][0], None)]),
    ],
)
def test_every_level_equals_the_models(resnets, se) -> None:
    # Without folding, a random network can amplify rounding; float64 avoids that.
    dtype = torch.float64 if resnets.get("NORM") == "GN" else torch.float32
    model = with_fpn(resnets, se).to(dtype)
    before = copy.deepcopy(model.state_dict())
    fused = fuse_for_inference(model)
    for shape in ((2, 3, 64, 96), (0, 3, 64, 64)):
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            expected, found = model(x), fused(x)
        assert found.keys() == expected.keys()
        for name in expected:
            if shape[0]:
                assert relative_error(found[name], expected[name]) < 1e-5, name
            assert found[name].shape == expected[name].shape
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.slow), "se_resnet18"])
def test_returned_maps_are_not_overwritten(name) -> None:
    """The stem's output is the shortcut of res2's first block, and each stage's output is the input of the next."""
    features = ("stem", "res2", "res3", "res4", "res5")
    model = with_random_weights(lambda: create_backbone(name, out_features=features)).eval()
    fused = fuse_for_inference(model)
    x = torch.randn(1, 3, 64, 64)
    given = x.clone()
    with torch.no_grad():
        expected, found = model(x), fused(x)
    assert torch.equal(x, given)
    for feature in features:
        assert relative_error(found[feature], expected[feature]) < 1e-5, feature
    assert sum(isinstance(module, FusedBlock) for module in fused.modules()) == 6


def test_a_custom_block_is_not_fused() -> None:
    """A subclass may do something else: here it halves its residual."""
    model = create_backbone("se_resnet18").eval()
    block = model.res2[1]
    block.__class__ = type("Halved", (SEBasicBlock,), {"residual": lambda self, x: SEBasicBlock.residual(self, x) / 2})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(fuse_for_inference(model)(x)["res5"], model(x)["res5"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str)
def test_half_precision(dtype, tolerance) -> None:
    """Against float64, within a few units of the last digit (2^-8, 2^-11) of the largest value."""
    model = with_fpn(*VARIANTS[0])
    fused = fuse_for_inference(model, dtype=dtype)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.double()(x.double())
        found = fused(x)
        for name in expected:
            assert found[name].dtype == torch.float32
            assert relative_error(found[name].double(), expected[name]) < tolerance
        with torch.autocast("cpu", dtype):
            found = fused(x)
        for name in expected:
            assert found[name].dtype == dtype
            assert relative_error(found[name].double(), expected[name]) < tolerance


@pytest.mark.slow
def test_detectron2s_own_detectors() -> None:
    """Of a plain ResNet; tests/detectors has the detectors with SE."""
    cfg = detectron2.model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RETINANET.NUM_CONVS, cfg.MODEL.FPN.OUT_CHANNELS = 1, 32
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    model = randomize_norms(build_model(cfg)).eval()
    inputs = [{"image": torch.randint(0, 255, (3, 64, 96)).float()}]
    with torch.no_grad():
        expected, found = model(inputs)[0]["instances"], fuse_for_inference(model)(inputs)[0]["instances"]
    assert len(found) == len(expected) > 20
    # Detections with almost the same score may change places.
    found, expected = (
        one[(1e4 * one.pred_classes + one.pred_boxes.tensor[:, 0]).double().argsort()] for one in (found, expected)
    )
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)


class TwoBlocks(nn.Module):
    """Returns the outputs of both of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = BasicBlock(8, 8), BasicBlock(8, 8)

    def forward(self, x):
        first = self.a(x)
        return {"a": first, "b": self.b(first)}


def test_blocks_outside_a_stage_keep_their_input() -> None:
    model = randomize_norms(TwoBlocks()).eval()
    x = torch.randn(1, 8, 64, 64)
    with torch.no_grad():
        expected, found = model(x), fuse_for_inference(model)(x)
    assert all(relative_error(found[name], expected[name]) < 1e-5 for name in expected)


@pytest.mark.slow
def test_compiled(monkeypatch) -> None:
    """Few graphs serve all heights and widths: one for even and one for odd p5.

    The backend is `eager`, because inductor takes half a minute.
    """
    compile_ = torch.compile
    # Two blocks in res2 alone, and two levels of FPN: each layer is traced three times.
    monkeypatch.setattr(se_resnet, "BLOCKS_PER_STAGE", dict.fromkeys(se_resnet.BLOCKS_PER_STAGE, (2, 1, 1, 1)))
    monkeypatch.setattr(torch, "compile", lambda model, mode, **options: compile_(model, backend="eager", **options))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = with_fpn(*VARIANTS[0], stages=["res4", "res5"])
    compiled = fuse_for_inference(model, compile="default")
    graphs = []
    with torch.no_grad():
        for shape in ((1, 3, 128, 192), (1, 3, 192, 256), (1, 3, 256, 128)):
            x = torch.randn(shape)
            expected, found = model(x), compiled(x)
            for name in expected:
                assert relative_error(found[name], expected[name]) < 1e-5
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not torch._dynamo.utils.counters["graph_break"]
    # One graph is the hook's, which makes the image channels-last.
    assert 2 <= graphs[1] == graphs[2] <= 3


def test_an_unknown_mode_is_refused() -> None:
    with raises("config.bad_value", "fast", "max-autotune"):
        fuse_for_inference(create_backbone("resnet18"), compile="fast")


def test_activations_of_the_heads_stay() -> None:
    """The convolutions of the RPN keep their own activations."""
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = randomize_norms(build_model(cfg)).eval()
    fused = fuse_for_inference(model)
    channels = model.backbone.output_shape()["p2"].channels
    x = [torch.randn(1, channels, 16, 16) for _ in range(5)]
    with torch.no_grad():
        for expected, found in zip(
            model.proposal_generator.rpn_head(x), fused.proposal_generator.rpn_head(x), strict=True
        ):
            for a, b in zip(expected, found, strict=True):
                assert relative_error(b, a) < 1e-5
    assert F.relu is fused.backbone.bottom_up.res2[0].first[0].activation
