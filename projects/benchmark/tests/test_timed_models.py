import pytest
import torch

from se_detection.modeling.blocks import SEBasicBlock

from ..arms import ARMS, PLAIN_OF, arms_of
from ..timm_backbone import TimmBackbone
from ..workload import make_workload


@pytest.fixture
def compiled(monkeypatch) -> list[dict[str, object]]:
    """What torch.compile was asked for; compiling takes half a minute, and what is asked for it is what is tested."""
    calls: list[dict[str, object]] = []

    def compile(function, **options):
        calls.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_every_arm_runs(mode, make_case, compiled) -> None:
    arms = arms_of(mode, list(ARMS))
    networks = {"timm-legacy", "timm", "eager", "stock", "compiled", "stock-compiled"}
    assert set(arms) == (networks if mode == "train" else {*ARMS})
    check_arms(arms, make_case(mode=mode), compiled)


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_detectors_run(mode, make_case, compiled) -> None:
    check_arms(["stock", "timm", "compiled"], make_case(part="detector", mode=mode), compiled)


def check_arms(arms, case, compiled) -> None:
    """Each takes the case's images, gives what stock gives, and is compiled if it says so."""
    shapes = {}
    for name in arms:
        compiled.clear()
        network = ARMS[name].build(case, "reduce-overhead")
        network.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: _shapes(out)}))
        make_workload(network, case, autocast=ARMS[name].autocast(case))()
        expected = [{"mode": "reduce-overhead", "dynamic": True}]
        assert compiled == (expected if name.endswith("compiled") else []), name
        assert network.training == (case.mode == "train")
    assert list(shapes) == arms
    assert all(shape == shapes["stock"] for shape in shapes.values())


def _shapes(out):
    return {name: value.shape for name, value in out.items()} if isinstance(out, dict) else len(out)


def test_arms_are_what_they_are_called(make_case, compiled) -> None:
    kinds = {}
    for name, arm in ARMS.items():
        modules = list(arm.build(make_case(), "default").modules())
        kinds[name] = {kind for kind in (SEBasicBlock, TimmBackbone) if any(isinstance(m, kind) for m in modules)}
    # What is fused has blocks of its own.
    assert kinds == {name: set() for name in ARMS} | {
        "eager": {SEBasicBlock},
        "timm-legacy": {TimmBackbone},
        "timm": {TimmBackbone},
    }
    assert [(name, ARMS[plain].backbone, ARMS[plain].compiled) for name, plain in PLAIN_OF.items()] == [
        (name, "plain", ARMS[name].compiled) for name in PLAIN_OF
    ]


@pytest.mark.parametrize(
    ("part", "dtype"), [("backbone", "float32"), ("backbone+fpn", "float32"), ("backbone+fpn", "bfloat16")]
)
def test_fused_arms_have_the_outputs_of_the_eager_ones(part, dtype, make_case) -> None:
    for eager, fused in (("stock", "stock-fused"), ("eager", "fused")):
        case = make_case(part=part, dtype=dtype)
        maps = []
        for name in (eager, fused):
            torch.manual_seed(0)
            arm = ARMS[name]
            maps.append(make_workload(arm.build(case, "default"), case, autocast=arm.autocast(case))())
        for level, expected in maps[0].items():
            error = (maps[1][level].float() - expected.float()).abs().max() / expected.float().abs().max()
            assert error < (1e-5 if dtype == "float32" else 0.05), (fused, level)


def test_stock_is_always_there_and_what_is_fused_is_for_inference() -> None:
    assert arms_of("inference", ["bound", "fused"]) == ["stock", "fused", "bound"]
    assert arms_of("train", ["bound", "fused", "stock-fused", "compiled"]) == ["stock", "compiled", "bound"]
