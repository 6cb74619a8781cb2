import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn

from se_detection import SEConfig, create_backbone, model_zoo
from se_detection.config.meta_device import Uninitialized
from se_detection.gates.recorder import constant_gates, recorded_gates, se_gates, stage_of
from se_detection.modeling.blocks import SEBasicBlock, SEBottleneckBlock

ACTIVATIONS = {
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), 0, 1),
    "tanh": (lambda x: 2 / (1 + torch.exp(-2 * x)) - 1, -1, 1),
    "relu": (lambda x: x.clamp(min=0), 0, float("inf")),
    "hardsigmoid": (lambda x: (x / 6 + 0.5).clamp(0, 1), 0, 1),
}
SQUEEZED = {
    "avg": lambda x: x.mean(dim=(2, 3), keepdim=True),
    "max": lambda x: x.amax(dim=(2, 3), keepdim=True),
    "avgmax": lambda x: torch.cat([x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)], dim=1),
    "none": lambda x: x,
}
VARIANTS = [
    *((squeeze, "sigmoid", "standard") for squeeze in SQUEEZED),
    *(("none", gate, "standard") for gate in ("tanh", "relu", "hardsigmoid")),
    *(("avg", "sigmoid", position) for position in ("pre", "post", "identity", "3x3")),
]


def test_gates_have_the_papers_names() -> None:
    with torch.device("meta"), Uninitialized():
        backbone = create_backbone("se_resnet50", se=SEConfig(stages=("res3", "res5")))
    assert list(se_gates(backbone)) == ["SE_3_1", "SE_3_2", "SE_3_3", "SE_3_4", "SE_5_1", "SE_5_2", "SE_5_3"]
    assert se_gates(backbone)["SE_5_3"] is backbone.res5[2].se
    assert stage_of("SE_5_3") == "SE_5"


@pytest.mark.slow
def test_inserted_gates_are_counted_by_stage() -> None:
    """RegNetX-200MF has 1, 1, 4 and 7 blocks (Radosavovic et al., Table 2)."""
    se = SEConfig(reduction=4)
    backbone = create_backbone("timm/regnetx_002", se=se).eval()
    numbers = [(stage, block) for stage, blocks in ((2, 1), (3, 1), (4, 4), (5, 7)) for block in range(1, blocks + 1)]
    gates = se_gates(backbone)
    assert list(gates) == [f"SE_{stage}_{block}" for stage, block in numbers]
    with recorded_gates(gates) as take, torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
        assert take().keys() == gates.keys()
    # timm's own SE modules have other layers.
    assert se_gates(create_backbone("timm/regnety_002")) == {}


@pytest.mark.parametrize(("squeeze", "gate", "position"), VARIANTS)
def test_every_gate_is_recorded(squeeze, gate, position) -> None:
    """Compares with the two layers written out, on the input of the block's squeeze."""
    se = SEConfig(squeeze=squeeze, gate=gate, position=position, reduction=4)
    block = {"bottleneck_channels": 32, "norm": "GN", "se": se}
    stages = {
        stage: nn.Sequential(*(SEBottleneckBlock(32, 32, **block) for _ in range(2))) for stage in ("res2", "res3")
    }
    backbone = nn.ModuleDict(stages).double().eval()
    gates = se_gates(backbone)
    assert list(gates) == ["SE_2_1", "SE_2_2", "SE_3_1", "SE_3_2"]
    seen = {}
    for name, module in gates.items():
        # So that some gates are near their limits; a ReLU has no upper limit, and the features would explode.
        module.fc2.weight.data *= 1 if gate == "relu" else 200
        module.squeeze.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    with torch.no_grad(), recorded_gates(gates) as take:
        backbone["res3"](backbone["res2"](torch.rand(1, 32, 8, 12, dtype=torch.float64)))
        taken = take()
    assert take() == {}
    assert not any(module.activation._forward_hooks for module in gates.values())
    assert list(taken) == list(gates)
    function, low, high = ACTIVATIONS[gate]
    some_are_near = False
    for name, module in gates.items():
        hidden = F.conv2d(SQUEEZED[squeeze](seen[name]), module.fc1.weight, module.fc1.bias).clamp(min=0)
        values = function(F.conv2d(hidden, module.fc2.weight, module.fc2.bias))[0].flatten(1).detach()
        recorded = [torch.from_numpy(array) for array in (taken[name].mean, taken[name].low, taken[name].high)]
        near = (values < low + 0.05).double(), (values > high - 0.05).double()
        for ours, theirs in zip(recorded, (values, *near), strict=True):
            torch.testing.assert_close(ours, theirs.mean(dim=1), rtol=1e-9, atol=1e-12)
        some_are_near |= bool(near[0].any())
    assert some_are_near


def test_gates_of_c4_heads_are_averaged_over_regions() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_50_FPN")
    cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_se_resnet_backbone", "MODEL.ROI_HEADS.NAME", "SERes5ROIHeads"),
            *("MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.DEVICE", "cpu"),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32]]),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.RPN.POST_NMS_TOPK_TEST", 9),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
        ]
    )
    model = build_model(cfg).eval()
    gates = se_gates(model)
    assert [name for name in gates if name.startswith("SE_5")] == ["SE_5_1", "SE_5_2", "SE_5_3"]
    outputs = []
    gates["SE_5_2"].activation.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad(), recorded_gates(gates) as take:
        model([{"image": torch.randint(0, 255, (3, 64, 64)).float()}])
        taken = take()
    (output,) = outputs
    assert 1 < len(output) <= 9
    expected = output.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.from_numpy(taken["SE_5_2"].mean), expected, rtol=1e-12, atol=0)


@pytest.fixture
def block():
    module = SEBasicBlock(32, 32, norm="GN", se=SEConfig(reduction=4)).eval()
    for norm in (module.conv1.norm, module.conv2.norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return module


def test_a_constant_gate_matches_the_block_written_out(block) -> None:
    mean, x = torch.rand(32), torch.randn(3, 32, 8, 9)
    before = block(x)
    with constant_gates({"SE_2_1": block.se}, {"SE_2_1": mean.double().numpy()}):
        held = block(x)
    residual = block.conv2(F.relu(block.conv1(x)))
    torch.testing.assert_close(held, F.relu(residual * mean[:, None, None] + x))
    assert not torch.allclose(held, before)
    assert torch.equal(block(x), before)


def test_a_constant_gate_can_be_folded_into_the_norm(block) -> None:
    """detectron2's plain block, with the last norm scaled by the gate, equals the block with a constant gate."""
    mean, x = torch.rand(32), torch.randn(3, 32, 8, 9)
    plain = BasicBlock(32, 32, norm="GN").eval()
    plain.load_state_dict({key: value for key, value in block.state_dict().items() if not key.startswith("se.")})
    plain.conv2.norm.weight.data *= mean
    plain.conv2.norm.bias.data *= mean
    with constant_gates({"SE_2_1": block.se}, {"SE_2_1": mean.double().numpy()}):
        torch.testing.assert_close(block(x), plain(x))
