import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from se_detection.modeling.blocks import SEBasicBlock
from tests.helpers import randomize_norms, relative_error

from ..networks import TimmNetwork
from ..timed_models import MODELS, PLAIN_OF, models_for
from ..workload import make_workload


@pytest.mark.parametrize("name", ["legacy_seresnet18", "seresnet18"])
def test_timms_network_is_its_classifiers_and_frozen_as_in_detectron2(name) -> None:
    backbone = randomize_norms(TimmNetwork(name))
    classifier = timm.create_model(name).eval()
    missing, unexpected = classifier.load_state_dict(backbone.network.state_dict(), strict=False)
    assert not unexpected
    assert {key for key in missing if not key.endswith("num_batches_tracked")} <= {
        *("fc.weight", "fc.bias", "last_linear.weight", "last_linear.bias")
    }
    maps = {}
    for number in (1, 2, 3, 4):
        stage = classifier.get_submodule(f"layer{number}")
        stage.register_forward_hook(lambda _, __, out, stage=f"res{number + 1}": maps.update({stage: out}))
    image = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        classifier(image)
        # Norms are frozen, so training mode changes nothing.
        ours = backbone.train()(image)
    assert list(ours) == list(maps) == ["res2", "res3", "res4", "res5"]
    for stage, theirs in maps.items():
        assert relative_error(ours[stage], theirs) < 1e-5
    # With FREEZE_AT 2 and FrozenBN.
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()) == 20
    trained = {key.split(".")[1] for key, value in backbone.named_parameters() if value.requires_grad}
    frozen = {key.split(".")[1] for key, value in backbone.named_parameters() if not value.requires_grad}
    assert frozen == {"layer0" if "legacy" in name else "conv1", "layer1"}
    assert trained == {"layer2", "layer3", "layer4"}


@pytest.fixture
def compiled(monkeypatch) -> list[dict[str, object]]:
    """The options of calls to torch.compile, which is replaced: compiling takes half a minute."""
    calls: list[dict[str, object]] = []

    def compile(function, **options):
        calls.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@pytest.mark.parametrize(
    ("part", "mode", "names"),
    [
        ("backbone", "train", ["stock", "timm", "compiled"]),
        pytest.param("backbone+fpn", "inference", list(MODELS), marks=pytest.mark.slow),
        pytest.param("detector", "inference", ["stock", "timm-legacy", "eager"], marks=pytest.mark.slow),
        pytest.param("detector", "train", ["stock", "timm", "compiled"], marks=pytest.mark.slow),
    ],
)
def test_every_model_runs(part, mode, names, make_case, compiled) -> None:
    """Outputs have the same shapes as stock's, and exactly the compiled models are compiled."""
    case = make_case(part=part, mode=mode)
    shapes, kinds = {}, {}
    for name in models_for(mode, names):
        compiled.clear()
        network = MODELS[name].build(case, "reduce-overhead")
        network.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: _shapes(out)}))
        make_workload(network, case, autocast=MODELS[name].autocast(case))()
        expected = [{"mode": "reduce-overhead", "dynamic": True}]
        assert compiled == (expected if name.endswith("compiled") else []), name
        assert network.training == (mode == "train")
        modules = list(network.modules())
        kinds[name] = {kind for kind in (SEBasicBlock, TimmNetwork) if any(isinstance(m, kind) for m in modules)}
    assert list(shapes) == names
    assert all(shape == shapes["stock"] for shape in shapes.values())
    # Fused models have other blocks.
    in_training = {"compiled": {SEBasicBlock}} if mode == "train" else {}
    for name, kind in (
        {"eager": {SEBasicBlock}, "timm-legacy": {TimmNetwork}, "timm": {TimmNetwork}} | in_training
    ).items():
        assert kinds.pop(name, kind) == kind
    assert not any(kinds.values())


def _shapes(out):
    return {name: value.shape for name, value in out.items()} if isinstance(out, dict) else len(out)


def test_a_model_is_compared_with_the_plain_network_run_in_the_same_way() -> None:
    for name, plain in PLAIN_OF.items():
        assert MODELS[name].backbone == "se"
        assert MODELS[plain].backbone == "plain"
        assert (MODELS[name].fused, MODELS[name].compiled) == (MODELS[plain].fused, MODELS[plain].compiled)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_models_have_the_outputs_of_eager_ones(dtype, make_case) -> None:
    case = make_case(dtype=dtype)
    for eager, fused in (("stock", "stock-fused"), ("eager", "fused")):
        maps = []
        for name in (eager, fused):
            torch.manual_seed(0)
            model = MODELS[name]
            maps.append(make_workload(model.build(case, "default"), case, autocast=model.autocast(case))())
        for level, expected in maps[0].items():
            assert relative_error(maps[1][level].float(), expected.float()) < (1e-5 if dtype == "float32" else 0.05)


def test_stock_is_always_timed_and_fused_models_only_at_inference() -> None:
    assert models_for("inference", ["bound", "fused"]) == ["stock", "fused", "bound"]
    assert models_for("train", ["bound", "fused", "stock-fused", "compiled"]) == ["stock", "compiled", "bound"]
