"""RoIAlign and the box head's first layer for inference on a CPU, in channels-last memory."""

from typing import Any

from detectron2.modeling.roi_heads import FastRCNNConvFCHead, StandardROIHeads
from torch import Tensor, nn

from ..ops.channels_last_pooler import pool_channels_last


def fuse_roi_heads(model: nn.Module) -> None:
    """Makes RoIAlign and the box heads of a detector on the CPU faster, in place, with the same outputs."""
    pool_channels_last(model)
    module: Any
    for module in model.modules():
        # Elsewhere, the regions are in contiguous memory.
        if isinstance(module, StandardROIHeads) and next(model.parameters()).device.type == "cpu":
            for head in module.box_head if isinstance(module.box_head, nn.ModuleList) else [module.box_head]:
                if type(head) is FastRCNNConvFCHead and head.fcs:
                    _flatten_last(head, *module.box_pooler.output_size)


def _flatten_last(head: Any, height: int, width: int) -> None:
    """Makes the first fully connected layer take (height, width, channels) instead of (channels, height, width)."""
    weight = head.fcs[0].weight
    weight.data = weight.view(len(weight), -1, height, width).permute(0, 2, 3, 1).flatten(1)
    head.flatten = _FlattenLast()


class _FlattenLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)
