"""detectron2's pooler with RoIAlign in channels-last memory, for a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn

from . import runs_eagerly


def pool_channels_last(model: nn.Module) -> None:
    """Makes RoIAlign faster on the CPU, in training and inference, in place, with the same outputs."""
    module: Any
    for module in model.modules():
        if type(module) is ROIPooler and all(type(level) is ROIAlign for level in module.level_poolers):
            module.__class__ = ChannelsLastPooler


class ChannelsLastPooler(ROIPooler):
    """detectron2's pooler; on a CPU, RoIAlign is a weighted sum of pixels, whose channels are next to each other.

    Each output is a sum over a small window of the map (`F.embedding_bag`). The weights are the same as torchvision's,
    which instead reads four values for each sample and channel, and adds to four in the backward pass.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Maps of each level, (N, C, H, W), and boxes of each image, to (M, C, height, width)."""
        if not (runs_eagerly() and x[0].device.type == "cpu" and x[0].dtype == torch.float32):
            return super().forward(x, box_lists)
        boxes, levels = boxes_and_levels(self, box_lists)
        pooled = x[0].new_empty(len(boxes), *self.output_size, x[0].shape[1])
        for level, (pooler, map_) in enumerate(zip(self.level_poolers, x, strict=True)):
            own = (levels == level).nonzero()[:, 0]
            if len(own):
                order, regions = _pool(pooler, map_, boxes[own])
                pooled[own[order]] = regions.view(-1, *pooled.shape[1:])
            else:
                # The map stays in the graph: DistributedDataParallel waits for the gradient of each parameter.
                pooled[own] = pooler(map_, boxes[own]).permute(0, 2, 3, 1)
        return pooled.permute(0, 3, 1, 2)


def boxes_and_levels(pooler: Any, box_lists: list[Boxes]) -> tuple[Tensor, Tensor]:
    """The boxes of all images with the image's number before each, (M, 5), and the level of each, (M,)."""
    limits = (pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level)
    return convert_boxes_to_pooler_format(box_lists), assign_boxes_to_levels(box_lists, *limits)


def _pool(pooler: Any, map_: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Pools the boxes of one level: their order, (M,), and their bins, (M * height * width, C)."""
    channels, height, width = map_.shape[1:]
    pixels = map_.permute(0, 2, 3, 1).reshape(-1, channels)
    images, boxes = boxes[:, 0].int(), boxes[:, 1:] * pooler.spatial_scale
    start, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if pooler.aligned:
        start = start - 0.5
    else:
        size = size.clamp(min=1)
    bins = torch.tensor(pooler.output_size[::-1])
    adaptive = pooler.sampling_ratio <= 0
    samples = (size / bins).ceil().int() if adaptive else torch.full_like(size, pooler.sampling_ratio, dtype=torch.int)
    # All boxes of a group have the same number of samples in a bin.
    groups, group_of = samples.unique(dim=0, return_inverse=True)
    order, taps, shares, lengths = [], [], [], []
    for group, (across, down) in enumerate(groups.tolist()):
        own = (group_of == group).nonzero()[:, 0]
        y, y_weight = _taps(start[own, 1], size[own, 1], height, int(bins[1]), down, window=adaptive)
        x, x_weight = _taps(start[own, 0], size[own, 0], width, int(bins[0]), across, window=adaptive)
        y = y * width + (images[own] * (height * width))[:, None, None]
        index = y[:, :, None, :, None] + x[:, None, :, None, :]
        weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        order.append(own)
        taps.append(index.flatten())
        shares.append(weight.flatten())
        lengths.append(torch.full((index[..., 0, 0].numel(),), index[0, 0, 0].numel(), dtype=torch.int))
    # One call for all groups: each has a backward pass over the whole map.
    length = torch.cat(lengths)
    offsets = (length.cumsum(0) - length).int()
    weights = torch.cat(shares)
    return torch.cat(order), F.embedding_bag(torch.cat(taps), pixels, offsets, per_sample_weights=weights, mode="sum")


def _taps(start: Tensor, size: Tensor, length: int, bins: int, samples: int, *, window: bool) -> tuple[Tensor, Tensor]:
    """The pixels that a bin's samples interpolate between along one axis, and their weights: (boxes, bins, pixels).

    Args:
        start, size: of each box, in pixels.
        length: of the map.
        samples: in a bin.
        window: samples are at most a pixel apart, so that a bin takes `samples` + 1 neighbouring pixels.
    """
    points = start[:, None] + (torch.arange(bins * max(samples, 1)) + 0.5) * (size / (bins * max(samples, 1)))[:, None]
    points = points.view(len(start), bins, -1)
    # torchvision counts no samples further outside, and none in an empty box.
    counts = (points >= -1) & (points <= length) & (samples > 0)
    points = points.clamp(0, length - 1)
    low = points.floor()
    pixels = low[..., :1] + torch.arange(samples + 1) if window else torch.cat([low, low + 1], dim=2)
    if window:
        shares = (1 - (points[..., None, :] - pixels[..., None]).abs()).clamp(min=0)
        weight = (shares * counts[..., None, :]).sum(dim=3)
    else:
        weight = torch.cat([1 - (points - low), points - low], dim=2) * counts.repeat(1, 1, 2)
    return pixels.clamp(max=length - 1).int(), weight / max(samples, 1)
