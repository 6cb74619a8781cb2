"""Networks of timm, one for each of its families, and networks with random weights as after training."""

from functools import partial
from typing import Any

import pytest
import timm
from torch import Tensor, nn

from ..helpers import with_random_weights

# The smallest of each family; FAST has one for each way in which timm names, orders and wraps layers.
FAST = ("resnet18", "seresnet33ts", "efficientnet_lite0", "mobilenetv3_small_050", "regnety_002", "dla46_c")
SLOW = (
    *("legacy_seresnet18", "rexnet_100", "ghostnet_050", "skresnet18", "repvit_m0_9", "xception41", "convnext_atto"),
    *("ecaresnet26t", "resnest14d", "tf_efficientnetv2_b0", "mixnet_s", "mobilenetv1_100", "mobilenetv4_conv_small"),
    *("lcnet_050", "regnetz_b16", "ese_vovnet19b_dw", "hgnetv2_b0", "hrnet_w18_small", "densenet121", "vgg11_bn"),
    *("resnetv2_50", "tresnet_m", "cs3darknet_focus_s", "eca_nfnet_l0", "dpn68", "selecsls42b"),
)
FAMILIES = (*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))
# Fewer blocks of the same kind.
SHALLOW: dict[str, dict[str, Any]] = {
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "dpn68": {"k_sec": (1, 1, 1, 1)},
    "resnetv2_50": {"layers": (1, 1, 1, 1)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "tresnet_m": {"layers": (2, 2, 2, 1)},
    "vgg11_bn": {"mlp_ratio": 0.01},
}


def trained_classifier(name: str) -> dict[str, Tensor]:
    """The state dict of timm's classifier, with values as after training."""
    network = with_random_weights(partial(timm.create_model, name, **SHALLOW.get(name, {})))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(7)
    return network.state_dict()
