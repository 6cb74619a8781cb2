"""Folded frozen norms against timm's own."""

import copy

import timm
import torch
from timm.layers import freeze_batch_norm_2d

from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.fold_timm import FoldedNorm, FoldingConv
from se_detection.modeling.timm_backbone import create_timm_backbone

from ..helpers import randomize_norms

# With TensorFlow's padding, and SE between a norm and the next convolution.
NAME = "tf_mobilenetv3_small_075"


def test_maps_and_gradients_are_timms() -> None:
    plain = randomize_norms(timm.create_model(NAME, features_only=True, out_indices=(2, 3)))
    ours = create_timm_backbone(NAME, out_features=("res3", "res4"), freeze_at=0)
    assert ours.network.state_dict().keys() <= plain.state_dict().keys()
    ours.network.load_state_dict(plain.state_dict(), strict=False)
    theirs = freeze_batch_norm_2d(plain).double()
    ours = copy.deepcopy(ours).double()
    kinds = [type(module) for module in ours.modules()]
    assert kinds.count(FoldedNorm) == sum(issubclass(kind, FoldingConv) for kind in kinds) > 20
    image = torch.randn(1, 3, 49, 65, dtype=torch.float64)
    for found, expected in zip(ours(image).values(), theirs(image), strict=True):
        torch.testing.assert_close(found, expected)
    for maps in (ours(image).values(), theirs(image)):
        sum(one.square().sum() for one in maps).backward()
    expected = dict(theirs.named_parameters())
    gradients = {key: one.grad for key, one in ours.network.named_parameters() if one.grad is not None}
    assert len(gradients) > 20
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key].grad)


def test_a_network_with_blocks_of_the_same_names_stays_as_it_is() -> None:
    """timm's CSPNeXt has a DepthwiseSeparableConv of its own."""
    with torch.device("meta"), Uninitialized():
        backbone = create_timm_backbone("cspnext_tiny", norm="FrozenBN")
    assert not any(isinstance(module, FoldingConv) for module in backbone.modules())
    assert list(backbone.output_shape()) == ["res2", "res3", "res4", "res5"]
