"""Detectors on networks of different families learn two images."""

import pytest
import torch
from detectron2.modeling import build_model

from ..modeling.timm_families import SHALLOW
from .shapes import draw
from .test_timm_detectors import losses_in_training, timm_config

# One for each kind of block and norm, of the smallest networks; test_timm_detectors.py has MobileNetV3.
FAST = ("regnety_002",)
SLOW = (
    *("rexnet_100", "ghostnet_050", "convnext_atto", "mixnet_s", "lcnet_050", "densenet121"),
    *("vgg11_bn", "resnetv2_50", "torchvision/shufflenet_v2_x0_5", "pytorchcv/shufflenet_g3_wd4"),
)
STEPS = 30
# Only the backbone has many parameters.
SMALL = {"MODEL__FPN__OUT_CHANNELS": 16, "MODEL__RETINANET__NUM_CONVS": 1}


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_two_images_are_overfitted(name) -> None:
    if name.startswith("pytorchcv"):
        pytest.importorskip("pytorchcv", reason="this test needs pytorchcv")
    torch.manual_seed(0)
    arguments = [
        f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in SHALLOW.get(name, {}).items()
    ]
    model = build_model(timm_config("retinanet", name, MODEL__TIMM__KWARGS=arguments, **SMALL)).train()
    images = [draw(seed, height=64, width=64).example() for seed in range(2)]
    totals = []
    for loss in losses_in_training(model, images, steps=STEPS):
        totals.append(loss)
        # The images are the same in each step, and RetinaNet samples nothing.
        if totals[-1] < 0.7 * totals[0]:
            return
    pytest.fail(f"the losses are {totals}")
