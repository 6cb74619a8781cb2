"""The sizes of the maps of timm's networks: a check without arithmetic, and padding for those that need it."""

import logging
from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import nn
from torch.func import functional_call

from ..config.meta_device import WithoutNorms
from ..errors import UserError, one_line
from .timm_network import named_tensors

logger = logging.getLogger(__name__)

# Height and width in pixels: odd at each of the strides, and multiples of the largest.
ODD, DIVISIBLE = (97, 131), (96, 128)


def fit_maps(backbone: Backbone, network: str, *, channels: int = 3) -> int:
    """Checks the sizes of a backbone's maps; pads convolutions and pools in it if the maps are too small.

    Args:
        network: its name, for messages.
        channels: of the images.

    Returns:
        The `size_divisibility`: 0 if each map has the size `ceil(input / stride)` at any size of the image, and 32 if
        only at multiples of 32.

    Raises:
        UserError: the maps have other sizes or channels than the backbone says, or it can't run at these sizes.
    """
    shapes = backbone.output_shape()
    reasons = []
    for align in (False, True):
        padded = _pad(backbone) if align else 0
        if align and not padded:
            break
        for size, divisibility in ((ODD, 0), (DIVISIBLE, 32)):
            expected = [(one.channels, *(ceil(side / one.stride) for side in size)) for one in shapes.values()]
            try:
                found = _map_sizes(backbone, channels, size)
            except Exception as error:  # a network may need another size, and fail in any way
                reasons.append(one_line(error))
                continue
            if found == expected:
                if padded:
                    logger.warning(
                        f"{network}: {padded} unpadded convolutions and pools are padded, because FPN needs maps of "
                        "size ceil(input / stride); the weights stay the same, the maps differ from timm's"
                    )
                return divisibility
            height, width = size
            reasons.append(f"for {height}x{width} pixels, its maps are {_show(found)} instead of {_show(expected)}")
    # The second reason: at multiples of 32, as timm built it.
    raise UserError(
        "model.no_maps",
        f"MODEL.TIMM: {network} can't be the backbone of a detector with OUT_FEATURES {', '.join(shapes)} and "
        f"OUTPUT_STRIDE {max(one.stride for one in shapes.values())} ({reasons[1]}); change these, or the network",
    )


def _map_sizes(backbone: Backbone, channels: int, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Channels, height and width of each map, without arithmetic: all tensors are on the meta device."""
    tensors = {key: torch.empty_like(tensor, device="meta") for key, tensor in named_tensors(backbone)}
    image = torch.empty(1, channels, *size, device="meta")
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad(), WithoutNorms():
            return [tuple(one.shape[1:]) for one in functional_call(backbone, tensors, (image,)).values()]
    finally:
        backbone.train(training)


def _show(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _pad(network: nn.Module) -> int:
    """Pads convolutions and pools that have odd kernels and no padding; returns how many.

    TensorFlow's detection models do this for Inception (`align_feature_maps`).
    """
    changed = 0
    module: Any
    for module in network.modules():
        # A subclass may pad its input itself.
        if type(module) not in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d) or isinstance(module.padding, str):
            continue
        kernel, stride, padding, dilation = (
            _pair(getattr(module, key, 1)) for key in ("kernel_size", "stride", "padding", "dilation")
        )
        sides = zip(kernel, stride, padding, dilation, strict=True)
        wanted = tuple(
            gap * (length - 1) // 2 if length % 2 and length != step and not pad else pad
            for length, step, pad, gap in sides
        )
        if wanted != padding:
            module.padding = wanted
            if isinstance(module, nn.AvgPool2d):
                module.count_include_pad = False
            changed += 1
    return changed


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
