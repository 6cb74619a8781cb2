import pytest
import torch

from se_detection.modeling.blocks import SEBasicBlock

from ..timed_models import MODELS, PLAIN_OF, models_for
from ..timm_network import TimmNetwork
from ..workload import make_workload


@pytest.fixture
def compiled(monkeypatch) -> list[dict[str, object]]:
    """The options of calls to torch.compile, which is replaced: compiling takes half a minute."""
    calls: list[dict[str, object]] = []

    def compile(function, **options):
        calls.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_every_model_runs(mode, make_case, compiled) -> None:
    names = models_for(mode, list(MODELS))
    trained = {"timm-legacy", "timm", "eager", "stock", "compiled", "stock-compiled"}
    assert set(names) == (trained if mode == "train" else {*MODELS})
    check_models(names, make_case(mode=mode), compiled)


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_detectors_run(mode, make_case, compiled) -> None:
    check_models(["stock", "timm", "compiled"], make_case(part="detector", mode=mode), compiled)


def check_models(names, case, compiled) -> None:
    """Outputs have the same shapes as stock's, and exactly the compiled models are compiled."""
    shapes = {}
    for name in names:
        compiled.clear()
        network = MODELS[name].build(case, "reduce-overhead")
        network.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: _shapes(out)}))
        make_workload(network, case, autocast=MODELS[name].autocast(case))()
        expected = [{"mode": "reduce-overhead", "dynamic": True}]
        assert compiled == (expected if name.endswith("compiled") else []), name
        assert network.training == (case.mode == "train")
    assert list(shapes) == names
    assert all(shape == shapes["stock"] for shape in shapes.values())


def _shapes(out):
    return {name: value.shape for name, value in out.items()} if isinstance(out, dict) else len(out)


def test_names_match_networks(make_case, compiled) -> None:
    kinds = {}
    for name, model in MODELS.items():
        modules = list(model.build(make_case(), "default").modules())
        kinds[name] = {kind for kind in (SEBasicBlock, TimmNetwork) if any(isinstance(m, kind) for m in modules)}
    # Fused models have other blocks.
    assert kinds == {name: set() for name in MODELS} | {
        "eager": {SEBasicBlock},
        "timm-legacy": {TimmNetwork},
        "timm": {TimmNetwork},
    }
    assert [(name, MODELS[plain].backbone, MODELS[plain].compiled) for name, plain in PLAIN_OF.items()] == [
        (name, "plain", MODELS[name].compiled) for name in PLAIN_OF
    ]


@pytest.mark.parametrize(
    ("part", "dtype"), [("backbone", "float32"), ("backbone+fpn", "float32"), ("backbone+fpn", "bfloat16")]
)
def test_fused_models_have_the_outputs_of_eager_ones(part, dtype, make_case) -> None:
    for eager, fused in (("stock", "stock-fused"), ("eager", "fused")):
        case = make_case(part=part, dtype=dtype)
        maps = []
        for name in (eager, fused):
            torch.manual_seed(0)
            model = MODELS[name]
            maps.append(make_workload(model.build(case, "default"), case, autocast=model.autocast(case))())
        for level, expected in maps[0].items():
            error = (maps[1][level].float() - expected.float()).abs().max() / expected.float().abs().max()
            assert error < (1e-5 if dtype == "float32" else 0.05), (fused, level)


def test_stock_is_always_timed_and_fused_models_only_at_inference() -> None:
    assert models_for("inference", ["bound", "fused"]) == ["stock", "fused", "bound"]
    assert models_for("train", ["bound", "fused", "stock-fused", "compiled"]) == ["stock", "compiled", "bound"]
