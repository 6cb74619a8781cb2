"""SE on FPN levels and after RoIAlign, next to the plain detector with the same weights."""

import copy

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.fpn import FPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from se_detection import fuse_for_inference, model_zoo
from se_detection.checkpoint.assumptions import WeightsAssumptions, contradictions
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.config.meta_device import Uninitialized
from se_detection.config.se_config import SEConfig
from se_detection.export.formats import write_onnx, write_torch_export
from se_detection.export.graph import find_instances
from se_detection.gates.recorder import constant_gates, recorded_gates, se_gates
from se_detection.modeling.insert_se import add_se_to_fpn, add_se_to_pooler
from se_detection.modeling.squeeze_excitation import SqueezeExcitation

from ..helpers import raises, randomize_norms, relative_error

pytestmark = pytest.mark.usefixtures("shallow")
SMALL = [
    *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.DEVICE", "cpu", "MODEL.SE.STAGES", "[]"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
]
BOTH = ["MODEL.SE.FPN", "True", "MODEL.SE.ROI", "True"]
IDENTITY = ["MODEL.SE.INIT", "identity"]
STANDARD = ["MODEL.ROI_HEADS.NAME", "SEStandardROIHeads"]
MASK = ["MODEL.MASK_ON", "True"]
CASCADE = ["MODEL.ROI_HEADS.NAME", "SECascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet18"]
C4 = [
    *("MODEL.ROI_HEADS.NAME", "SERes5ROIHeads", "MODEL.BACKBONE.NAME", "build_se_resnet_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]"),
]
RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
]


def config(*overrides: str):
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.merge_from_list(["MODEL.SE.INIT", "default", *SMALL, *overrides])
    return cfg


def gates_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SqueezeExcitation)]


def without_gates(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in model.state_dict().items() if ".se." not in key}


def detections(model: nn.Module, *sizes: tuple[int, int]) -> list[Instances]:
    chance = torch.Generator().manual_seed(0)
    inputs = [{"image": torch.rand(3, *size, generator=chance) * 255} for size in sizes]
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(inputs)]


def losses(model: nn.Module) -> dict[str, Tensor]:
    instances = Instances((97, 131), gt_boxes=Boxes(torch.tensor([[10.0, 20.0, 60.0, 90.0]])))
    instances.gt_classes = torch.tensor([1])
    torch.manual_seed(0)
    image = 255 * torch.rand(3, 97, 131)
    with EventStorage():
        return model.train()([{"image": image, "instances": instances}])


LEVELS = [f"backbone.fpn_output{level}.se" for level in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        pytest.param(["MODEL.SE.FPN", "True"], LEVELS, marks=pytest.mark.slow),
        pytest.param([*STANDARD, "MODEL.SE.ROI", "True"], ["roi_heads.box_pooler.se"], marks=pytest.mark.slow),
        pytest.param([*STANDARD, *MASK, *BOTH], [*LEVELS, "box", "mask"], marks=pytest.mark.slow),
        pytest.param([*CASCADE, *BOTH], [*LEVELS, "roi_heads.box_pooler.se"], marks=pytest.mark.slow),
        pytest.param([*C4, "MODEL.SE.ROI", "True"], ["roi_heads.pooler.se"], marks=pytest.mark.slow),
        pytest.param([*RETINANET, "MODEL.SE.FPN", "True"], LEVELS[1:], marks=pytest.mark.slow),
    ],
)
def test_detectors_that_start_as_the_identity(overrides, names, tmp_path) -> None:
    plain_config = config(*overrides, "MODEL.SE.FPN", "False", "MODEL.SE.ROI", "False")
    plain = randomize_norms(build_model(plain_config))
    gated = build_model(config(*overrides, *IDENTITY))
    names = [name if "." in name else f"roi_heads.{name}_pooler.se" for name in names]
    assert gates_of(gated) == names
    assert without_gates(gated).keys() == plain.state_dict().keys()

    # The plain detector's checkpoint fits.
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    StrictCheckpointer(gated).load(str(tmp_path / "plain.pth"))
    for one, other in zip(detections(gated, (97, 131)), detections(plain, (97, 131)), strict=True):
        assert len(other) > 0
        for field, ours in one.get_fields().items():
            theirs = other.get(field)
            ours, theirs = (each.tensor if isinstance(each, Boxes) else each for each in (ours, theirs))
            assert torch.equal(ours, theirs), field
    if "MODEL.MASK_ON" in overrides:
        return
    ours, theirs = losses(gated), losses(plain)
    assert {key: loss.item() for key, loss in ours.items()} == {key: loss.item() for key, loss in theirs.items()}

    # After a step of the gates, it is another network.
    sum(ours.values()).backward()
    for name in names:
        bias = gated.get_submodule(name).fc2.bias
        bias.data -= bias.grad / bias.grad.abs().max()
    ours = losses(gated)
    assert any(loss.item() != theirs[key].item() for key, loss in ours.items())

    # Its own checkpoint fits too, but not into ordinary gates.
    assumptions = WeightsAssumptions.from_cfg(config(*overrides, *IDENTITY))
    StrictCheckpointer(gated, str(tmp_path), assumptions=assumptions).save("own")
    ordinary = config(*overrides)
    with Uninitialized():
        again, another = build_model(config(*overrides, *IDENTITY)), build_model(ordinary)
    StrictCheckpointer(again, assumptions=assumptions).load(str(tmp_path / "own.pth"))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in gated.state_dict().items())
    with raises("weights.contradicts_config", "MODEL.SE.INIT"):
        loader = StrictCheckpointer(another, assumptions=WeightsAssumptions.from_cfg(ordinary))
        loader.load(str(tmp_path / "own.pth"))


def test_ordinary_gates_need_their_weights(tmp_path) -> None:
    torch.save({"model": build_model(config()).state_dict()}, tmp_path / "plain.pth")
    with raises("weights.partial_heads", "fpn_output2.se.fc1.weight"):
        StrictCheckpointer(build_model(config("MODEL.SE.FPN", "True"))).load(str(tmp_path / "plain.pth"))


def naive_se(se: SqueezeExcitation, x: Tensor) -> Tensor:
    """Equations 2 to 4 of the paper."""
    hidden = (x.mean(dim=(2, 3)) @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias).clamp(min=0)
    return torch.sigmoid(hidden @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias)[:, :, None, None] * x


def test_each_level_of_fpn_has_its_own_gates() -> None:
    gated = randomize_norms(build_backbone(config("MODEL.SE.FPN", "True"))).eval()
    plain = build_backbone(config()).eval()
    plain.load_state_dict(without_gates(gated))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, expected = gated(x), plain(x)
        for level in (2, 3, 4, 5):
            se = gated.get_submodule(f"fpn_output{level}.se")
            assert relative_error(maps[f"p{level}"], naive_se(se, expected[f"p{level}"])) < 1e-6
        assert torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])
        fused = fuse_for_inference(gated)(x)
        for name, theirs in maps.items():
            assert relative_error(fused[name], theirs) < 1e-5


def test_each_region_has_its_own_gates() -> None:
    heads = build_model(config(*STANDARD, "MODEL.SE.ROI", "True")).roi_heads
    pooler, plain = heads.box_pooler, copy.deepcopy(heads.box_pooler)
    plain._forward_hooks.clear()
    maps = [torch.randn(1, 32, 64 >> level, 96 >> level) for level in range(4)]
    for boxes in (torch.tensor([[3.0, 5.0, 90.0, 77.0], [0.0, 0.0, 30.0, 20.0]]), torch.zeros(0, 4)):
        pooled = pooler(maps, [Boxes(boxes)])
        torch.testing.assert_close(pooled, naive_se(pooler.se, plain(maps, [Boxes(boxes)])))


def test_functions_for_lazy_configs() -> None:
    fpn = build_backbone(config())
    assert isinstance(fpn, FPN)
    assert add_se_to_fpn(fpn, SEConfig()) is fpn
    pooler = build_model(config()).roi_heads.box_pooler
    assert add_se_to_pooler(pooler, 32, SEConfig(init="identity")) is pooler
    with raises("config.bad_value", "MODEL.SE.REDUCTION", "32 channels"):
        add_se_to_pooler(pooler, 32, SEConfig(reduction=64))


def test_fpn_with_se_ignores_padding() -> None:
    overrides = ["MODEL.SE.FPN", "True", "MODEL.SE.IGNORE_PADDING", "True"]
    backbone = randomize_norms(build_backbone(config(*overrides))).eval()
    images = torch.zeros(2, 3, 128, 160)
    images[0] = torch.randn(3, 128, 160)
    images[1, :, :64, :96] = torch.randn(3, 64, 96)
    with torch.no_grad():
        alone, shared = backbone(images[1:, :, :64, :96]), backbone(images)
        for name, map_ in alone.items():
            height, width = map_.shape[2:]
            assert relative_error(shared[name][1:, :, :height, :width], map_) < 1e-5


@pytest.mark.parametrize(
    ("overrides", "code", "named"),
    [
        (["MODEL.SE.ROI", "True"], "model.plain_roi_heads", "StandardROIHeads"),
        ([*RETINANET, "MODEL.SE.ROI", "True"], "model.plain_roi_heads", "MODEL.SE.ROI"),
        ([*C4, "MODEL.SE.FPN", "True"], "model.no_fpn", "build_se_resnet_backbone"),
        ([*TIMM, "MODEL.SE.FPN", "True"], "model.no_fpn", "build_timm_backbone"),
        ([*TIMM, "MODEL.SE.ROI", "True"], "model.plain_roi_heads", "StandardROIHeads"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(overrides, code, named) -> None:
    with raises(code, named), torch.device("meta"):
        build_backbone(config(*overrides))


def test_a_detector_of_detectron2_with_se_after_roialign() -> None:
    overrides = [*STANDARD, "MODEL.SE.ROI", "True", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", *IDENTITY]
    cfg, other = config(*overrides), config(*overrides, "MODEL.SE.GATE", "hardsigmoid")
    assert gates_of(build_model(cfg)) == ["roi_heads.box_pooler.se"]
    one, another = WeightsAssumptions.from_cfg(cfg), WeightsAssumptions.from_cfg(other)
    assert [difference.split()[0] for difference in contradictions(one, another)] == ["MODEL.SE.GATE"]
    plain = WeightsAssumptions.from_cfg(config("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"))
    assert contradictions(plain, one) == []


@pytest.mark.slow
def test_exports(tmp_path) -> None:
    """ONNX, and torch.export of backbone and FPN; SE in the backbone too, with gates that have left the identity."""
    onnxruntime = pytest.importorskip("onnxruntime")
    # Of two levels, because each takes as long as the others.
    levels = "['res4', 'res5']"
    words = [*STANDARD, *BOTH, *IDENTITY, "MODEL.SE.STAGES", levels]
    words += ["MODEL.RESNETS.OUT_FEATURES", levels, "MODEL.FPN.IN_FEATURES", levels]
    words += ["MODEL.RPN.IN_FEATURES", "['p4', 'p5', 'p6']", "MODEL.ROI_HEADS.IN_FEATURES", "['p4', 'p5']"]
    words += ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64]]"]
    model = randomize_norms(build_model(config(*words))).eval()
    for name in gates_of(model):
        nn.init.normal_(model.get_submodule(name).fc2.weight)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((96, 128), (128, 160))]
    description = {"outputs": {"boxes": "", "scores": "", "classes": ""}, "input": {"pad_to_multiples_of": 32}}
    write_onnx(tmp_path / "d.onnx", model, images[0], description)
    session = onnxruntime.InferenceSession(str(tmp_path / "d.onnx"), providers=["CPUExecutionProvider"])
    for image in images:
        _, scores, _ = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            expected = find_instances(model, image).scores
        torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-5)
    fpn = model.backbone
    write_torch_export(tmp_path / "d.pt2", fpn, torch.device("cpu"), description)
    program = torch.export.load(tmp_path / "d.pt2").module()
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        for name, map_ in fpn(x).items():
            assert relative_error(program(x)[name], map_) < 1e-5


def test_their_gates_are_analyzed() -> None:
    """Each has a value for each channel; the gates of regions are averaged over the regions."""
    cfg = config(*BOTH, *STANDARD, *MASK)
    model = build_model(cfg).eval()
    gates = se_gates(model)
    assert list(gates) == [*(f"SE_FPN_{level}" for level in (2, 3, 4, 5)), "SE_ROI_box", "SE_ROI_mask"]
    assert list(gates.values()) == [model.get_submodule(name) for name in gates_of(model)]
    outputs: list[Tensor] = []
    gates["SE_ROI_box"].activation.register_forward_hook(lambda *args: outputs.append(args[2]))
    with recorded_gates(gates) as take:
        before = detections(model, (97, 131))
        taken = take()
    assert {name: values.mean.shape for name, values in taken.items()} == dict.fromkeys(gates, (32,))
    (output,) = outputs
    assert len(output) == 20
    expected = output.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.from_numpy(taken["SE_ROI_box"].mean), expected, rtol=1e-12, atol=0)
    with constant_gates(gates, {name: 0 * values.mean for name, values in taken.items()}):
        after = detections(model, (97, 131))
    assert not torch.equal(before[0].scores, after[0].scores)
