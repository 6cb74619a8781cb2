import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from tests.helpers import randomize_norms, relative_error

from ..timm_network import TimmNetwork


@pytest.mark.parametrize("name", ["legacy_seresnet50", "seresnet50"])
def test_the_maps_equal_those_of_timms_classifier(name) -> None:
    backbone = randomize_norms(TimmNetwork(name))
    classifier = timm.create_model(name).eval()
    missing, unexpected = classifier.load_state_dict(backbone.network.state_dict(), strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing if "fc." not in key[:3] and "last_linear" not in key} <= {
        "num_batches_tracked"
    }
    maps = {}
    for number in (1, 2, 3, 4):
        stage = classifier.get_submodule(f"layer{number}")
        stage.register_forward_hook(lambda _, __, out, stage=f"res{number + 1}": maps.update({stage: out}))
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        classifier(image)
        # Norms are frozen, so training mode changes nothing.
        ours = backbone.train()(image)
    assert list(ours) == list(backbone.output_shape()) == ["res2", "res3", "res4", "res5"]
    for stage, shape in backbone.output_shape().items():
        assert relative_error(ours[stage], maps[stage]) < 1e-5
        assert ours[stage].shape[1:] == (shape.channels, 64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize("name", ["legacy_seresnet18", "seresnet18"])
def test_stem_first_stage_and_norms_are_frozen(name) -> None:
    """As with FREEZE_AT 2 and FrozenBN in detectron2."""
    backbone = TimmNetwork(name)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()) == 20
    frozen = {key.split(".")[1] for key, value in backbone.named_parameters() if not value.requires_grad}
    trained = {key.split(".")[1] for key, value in backbone.named_parameters() if value.requires_grad}
    assert frozen == {"layer0" if "legacy" in name else "conv1", "layer1"}
    assert trained == {"layer2", "layer3", "layer4"}
