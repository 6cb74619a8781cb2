"""DropBlock in detectron2's ResNets against timm's."""

from types import SimpleNamespace

import pytest
import timm
import torch

from se_detection import convert_state_dict, create_backbone
from se_detection.engine.hooks import DropBlockSchedule
from se_detection.modeling.drop_block import add_drop_block, drop_blocks

from ..helpers import relative_error


@pytest.mark.parametrize("name", ["resnet18", pytest.param("seresnet50", marks=pytest.mark.slow)])
def test_maps_are_those_of_timms_network_with_drop_block(name) -> None:
    """With the same weights and the same random numbers, in training and in evaluation."""
    theirs = timm.create_model(name, drop_block_rate=0.6)
    ours = create_backbone(name.replace("seresnet", "se_resnet"), norm="BN", out_features=("res3", "res5"))
    weights = convert_state_dict(theirs.state_dict(), "timm")
    ours.load_state_dict({key: tensor for key, tensor in weights.items() if not key.startswith("linear.")})
    names = set(ours.state_dict())
    add_drop_block(ours, 0.6)
    # timm's network makes layers in res4 and res5 alone, too.
    assert len(drop_blocks(ours)) == len(drop_blocks(theirs)) > 0
    assert set(ours.state_dict()) == names
    x = torch.randn(2, 3, 96, 160)
    found = []
    for training in (True, False):
        maps = []
        for network in (theirs.train(training), ours.train(training)):
            torch.manual_seed(3)
            with torch.no_grad():
                maps.append(network(x)["res5"] if network is ours else network.forward_features(x))
        assert relative_error(*maps) < 1e-5
        found.append(maps[1])
    assert relative_error(*found) > 0.1


def test_rates_rise_linearly_to_those_of_the_config() -> None:
    backbone = create_backbone("resnet18", norm="BN")
    add_drop_block(backbone, 0.2)
    layers = drop_blocks(backbone)
    hook = DropBlockSchedule(layers)
    for iteration, rate in ((0, 0.0), (5, 0.1), (10, 0.2)):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=10)
        hook.before_step()
        assert [layer.drop_prob for layer in layers] == pytest.approx([rate] * 4)
