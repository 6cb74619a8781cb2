from collections.abc import Callable
from typing import Any

import pytest
from detectron2.modeling.backbone.resnet import ResNet

from se_detection import SEConfig
from se_detection.modeling import se_resnet

from ..helpers import randomize_norms


@pytest.fixture(scope="module")
def narrow(shallow) -> Callable[..., ResNet]:
    """A function that makes shallow and narrow networks, with random norms."""

    def make(depth: int = 50, **options: Any) -> ResNet:
        width = 16 // options.get("num_groups", 1)
        small = {"stem_channels": 16, "res2_channels": 64, "width_per_group": width}
        usual = {"se": SEConfig(reduction=4), "norm": "FrozenBN", "out_features": se_resnet.STAGES}
        return randomize_norms(se_resnet.make_se_resnet(depth, **usual | small | options))

    return make
