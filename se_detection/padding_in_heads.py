"""The part of `MODEL.SE.IGNORE_PADDING` that lies outside of the backbone: proposals, dense heads and RoI poolers."""

import math
from functools import partial
from typing import Any

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

from .layers.padding import Padding


def ignore_padding_in_heads(model: nn.Module) -> None:
    """Keeps padding from what a detector finds, where its backbone ignores it; other detectors stay as they are.

    A head's convolutions take the padding as 0, as they do outside of a map; in inference nothing is proposed or found
    at a position in the padding; and RoIAlign goes on with a picture's last row and column beyond it, as it does at the
    end of a map. With that, boxes and scores of a picture do not depend on its batch. Without, which is what
    detectron2's own tools build, the features alone don't.

    Args:
        model: detectron2's `GeneralizedRCNN` with its RPN, or `RetinaNet`; changed in place. In another detector, heads
            are left as they are.
    """
    backbone: Any = getattr(model, "backbone", None)
    padding = getattr(backbone, "padding", None)
    if padding is None:
        return
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    rpn: Any = getattr(model, "proposal_generator", None)
    if isinstance(model, RetinaNet):
        _HeadPadding(padding, [strides[name] for name in model.head_in_features]).install(model.head)
    elif isinstance(rpn, RPN):
        _HeadPadding(padding, [strides[name] for name in rpn.in_features]).install(rpn.rpn_head)
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(partial(_continue_pictures, padding=padding))


class _HeadPadding:
    """Clears the padding in a head that works on several maps, one after another.

    Args:
        padding: of the batch.
        strides: of the maps, in their order.
    """

    def __init__(self, padding: Padding, strides: list[int]) -> None:
        self.padding = padding
        self.levels = [round(math.log2(stride)) for stride in strides]
        self.by_size: dict[tuple[int, int], int] = {}

    def install(self, head: nn.Module) -> None:
        head.register_forward_pre_hook(self.begin)
        for conv in head.modules():
            if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1:
                conv.register_forward_pre_hook(self.clear)
        head.register_forward_hook(self.find_nothing)

    def begin(self, head: nn.Module, inputs: tuple[list[Tensor]]) -> None:
        # Where two maps have one size, it is 1x1, and all of it is picture.
        self.by_size = {(x.shape[2], x.shape[3]): level for x, level in zip(inputs[0], self.levels, strict=True)}

    def clear(self, conv: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = inputs[0]
        return (x * self.padding.mask(x, self.by_size[x.shape[2], x.shape[3]]),)

    def find_nothing(self, head: nn.Module, inputs: Any, output: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
        """The first output is the logits."""
        # In training an anchor in the padding is background as any other.
        if head.training:
            return output
        masks = [self.padding.mask(x, level) for x, level in zip(output[0], self.levels, strict=True)]
        logits = [x.masked_fill(mask == 0, -torch.inf) for x, mask in zip(output[0], masks, strict=True)]
        return (logits, *output[1:])


def _continue_pictures(pooler: Any, inputs: tuple[Any, ...], *, padding: Padding) -> tuple[Any, ...]:
    maps, *rest = inputs
    levels = [round(-math.log2(level_pooler.spatial_scale)) for level_pooler in pooler.level_poolers]
    return ([padding.continue_pictures(x, level) for x, level in zip(maps, levels, strict=True)], *rest)
