"""Backbones for the weights of mmpretrain and timm, and the preprocessing of these weights."""

from typing import Any

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from omegaconf import DictConfig

from se_detection import create_backbone


def backbone(**options: Any) -> DictConfig:
    """By default a ResNet-50 with a frozen stem and res2, as in detectron2's recipe."""
    stages = ["res2", "res3", "res4", "res5"]
    return L(create_backbone)(
        **{"name": "resnet50", "norm": "FrozenBN", "out_features": stages, "freeze_at": 2, **options}
    )


def pixels() -> dict[str, Any]:
    """The preprocessing of mmpretrain and of timm's ResNets, for pixels from 0 to 255."""
    constants = get_config("common/data/constants.py").constants
    return {
        "pixel_mean": constants.imagenet_rgb256_mean,
        "pixel_std": constants.imagenet_rgb256_std,
        "input_format": "RGB",
    }
