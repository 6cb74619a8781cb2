"""The part of `MODEL.SE.IGNORE_PADDING` that lies outside of the backbone: proposals, dense heads and RoI poolers."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

from .padding import Padding


def ignore_padding_in_heads(model: nn.Module) -> None:
    """Keeps padding from what a detector finds, where its backbone ignores it; other detectors stay as they are.

    A head's convolutions take the padding as 0, as they do outside of a map, and its norms (GN) leave it out; in
    inference nothing is proposed or found at a position in the padding, and a head for semantic segmentation works on
    one picture after another; and RoIAlign goes on with a picture's last row and column beyond it, as it does at the
    end of a map. With that, what is found in a picture does not depend on its batch. Without, which is what
    detectron2's own tools build, the features alone don't.

    Args:
        model: detectron2's `GeneralizedRCNN` or `PanopticFPN` with its RPN, `RetinaNet` or `FCOS`; changed in place. In
            another detector, heads are left as they are.
    """
    backbone: Any = getattr(model, "backbone", None)
    padding = getattr(backbone, "padding", None)
    if padding is None:
        return
    strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
    rpn: Any = getattr(model, "proposal_generator", None)
    if isinstance(model, DenseDetector):
        _HeadPadding(padding, [strides[name] for name in model.head_in_features]).install(model.head)
    elif isinstance(rpn, RPN):
        _HeadPadding(padding, [strides[name] for name in rpn.in_features]).install(rpn.rpn_head)
    module: Any
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(partial(_continue_pictures, padding=padding))
        # What a subclass does is not known.
        elif type(module) is SemSegFPNHead:
            module.__class__ = _PicturewiseSemSegHead
            module.padding = padding
            module.strides = {name: strides[name] for name in module.in_features}


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
        for module in head.modules():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                module.register_forward_pre_hook(self.clear)
            elif isinstance(module, nn.GroupNorm):
                module.register_forward_hook(self.normalize)
        head.register_forward_hook(self.find_nothing)

    def begin(self, head: nn.Module, inputs: tuple[list[Tensor]]) -> None:
        # Where two maps have one size, it is 1x1, and all of it is picture.
        self.by_size = {_size(x): level for x, level in zip(inputs[0], self.levels, strict=True)}

    def mask(self, x: Tensor) -> Tensor:
        return self.padding.mask(x, self.by_size[_size(x)])

    def clear(self, conv: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * self.mask(inputs[0]),)

    def normalize(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """GN whose mean and variance are of the pictures alone, in float32 as PyTorch's own."""
        x = inputs[0].float().unflatten(1, (norm.num_groups, -1))
        mask = self.mask(inputs[0]).float().unsqueeze(1)
        values = mask.sum(dim=(2, 3, 4), keepdim=True) * x.shape[2]
        x = x - (x * mask).sum(dim=(2, 3, 4), keepdim=True) / values
        variance = (x.square() * mask).sum(dim=(2, 3, 4), keepdim=True) / values
        x = (x * (variance + norm.eps).rsqrt()).flatten(1, 2)
        if norm.affine:
            x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return x.to(output.dtype)

    def find_nothing(self, head: nn.Module, inputs: Any, output: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
        """The first output is the logits."""
        # In training an anchor in the padding is background as any other.
        if head.training:
            return output
        masks = [self.padding.mask(x, level) for x, level in zip(output[0], self.levels, strict=True)]
        logits = [x.masked_fill(mask == 0, -torch.inf) for x, mask in zip(output[0], masks, strict=True)]
        return (logits, *output[1:])


def _size(x: Tensor) -> tuple[int, int]:
    # In a trace sizes are tensors, and the level of a map is the same whatever its size.
    return int(x.shape[2]), int(x.shape[3])


class _PicturewiseSemSegHead(SemSegFPNHead):
    """detectron2's head, that sees of a batch one picture after another in inference.

    Its norm (GN, unless `MODEL.SEM_SEG_HEAD.NORM` is another) and its bilinear upsampling look beyond the picture.
    """

    padding: Padding
    strides: dict[str, int]

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Maps by name, each (N, C, H / its stride, W / its stride), to (N, classes, H / 4, W / 4)."""
        if self.training:
            return super().layers(features)
        first = features[self.in_features[0]]
        height, width = first.shape[2:]
        # So that all maps end at one place, as those of a picture alone do.
        coarsest = max(self.strides.values())
        outputs = []
        for place, size in enumerate(-(-self.padding.sizes(0) // coarsest) * coarsest):
            alone = {}
            for name, stride in self.strides.items():
                rows, columns = (size // stride).tolist()
                alone[name] = features[name][place : place + 1, :, :rows, :columns]
            output = super().layers(alone)
            # Goes on as it ends: so it is resized as a map that ends here.
            outputs.append(F.pad(output, (0, width - output.shape[3], 0, height - output.shape[2]), mode="replicate"))
        return torch.cat(outputs)


def _continue_pictures(pooler: Any, inputs: tuple[Any, ...], *, padding: Padding) -> tuple[Any, ...]:
    maps, *rest = inputs
    levels = [round(-math.log2(level_pooler.spatial_scale)) for level_pooler in pooler.level_poolers]
    return ([padding.continue_pictures(x, level) for x, level in zip(maps, levels, strict=True)], *rest)
