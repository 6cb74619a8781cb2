"""Networks of timm, one for each of its families, and networks with random weights as after training."""

import pytest
import timm
from torch import Tensor, nn

from se_detection.config.meta_device import Uninitialized

from ..helpers import randomize_norms

# The smallest of each family; FAST has one for each way in which timm names, orders and wraps layers.
FAST = ("resnet18", "seresnet33ts", "efficientnet_lite0", "mobilenetv3_small_050", "regnety_002", "dla46_c")
SLOW = (
    *("legacy_seresnet18", "rexnet_100", "ghostnet_050", "skresnet18", "repvit_m0_9", "xception41", "convnext_atto"),
    *("seresnet18", "seresnext26ts", "resnet26t", "resnetblur18", "ecaresnet26t", "resnest14d"),
    *("efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnetv2_b0", "mnasnet_small", "mixnet_s", "tinynet_e"),
    *("spnasnet_100", "mobilenetv1_100", "mobilenetv2_050", "mobilenetv3_large_100", "tf_mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "lcnet_050", "hardcorenas_a", "fbnetv3_b", "regnetx_002", "regnetz_b16"),
    *("repghostnet_050", "ese_vovnet19b_dw", "hgnetv2_b0", "hrnet_w18_small"),
    *("densenet121", "vgg11_bn", "resnetv2_50", "tresnet_m", "gcresnet33ts", "cs3darknet_focus_s"),
    *("eca_nfnet_l0", "dpn68", "resnetaa34d", "selecsls42b"),
)
FAMILIES = (*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))


def trained_classifier(name: str) -> dict[str, Tensor]:
    """The state dict of timm's classifier, with values as after training."""
    with Uninitialized():
        network = timm.create_model(name)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data.normal_(std=(2 / fan_in) ** 0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(7)
    return randomize_norms(network).state_dict()
