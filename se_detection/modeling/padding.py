"""MODEL.SE.IGNORE_PADDING: a network that ignores the padding of its batch.

:func:`ignore_padding` changes a backbone, alone or with FPN, and :func:`ignore_padding_in_heads` the heads of a
detector. Both install hooks that set the padding to 0 where a layer would look at it, and replace the squeezes of SE.
The hooks of a network share one :class:`Padding`, which knows the sizes of the images in the current batch.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

from ..errors import UserError
from .squeeze_excitation import AvgMaxSqueeze, SqueezeExcitation
from .stems import CaffeStem, DeepStem

# Sums of float16 values are computed in this unit, so that the sum over a whole map stays in the range of float16.
UNIT = 2.0**-8


def ignore_padding(backbone: Backbone) -> Backbone:
    """Makes a backbone compute the features of each image as if the image were alone and not padded.

    detectron2 pads the images of a batch to one size. After a norm or a bias the padding is no longer 0, and it leaks
    into the features: through each convolution near the border of the image, and through SE's average everywhere. Here
    the padding is set to 0 before each layer with a kernel larger than 1x1, as convolutions pad with 0, and squeezes
    skip it. The output is 0 in the padding. In training, the statistics of BN still include the padding.

    Args:
        backbone: detectron2's `ResNet` (of plain or SE blocks), alone or as the `bottom_up` of an `FPN`. It is changed
            in place; its weights and the names of its parameters stay the same.

    Returns:
        The same backbone, for lazy configs: `model.backbone = LazyCall(ignore_padding)(backbone=model.backbone)`.

    Raises:
        UserError: it is another backbone, or has norms whose statistics always include the padding (GN).
    """
    bottom_up = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    if not isinstance(bottom_up, ResNet):
        raise UserError(
            "model.padding", f"MODEL.SE.IGNORE_PADDING: {type(bottom_up).__name__} is not a ResNet; set it to False"
        )
    if any(isinstance(module, nn.GroupNorm) for module in backbone.modules()):
        raise UserError(
            "model.padding",
            "MODEL.SE.IGNORE_PADDING: the statistics of GN include the padding; set it to False, or choose another "
            "MODEL.RESNETS.NORM and MODEL.FPN.NORM",
        )
    padding = Padding(unpadded_pool=isinstance(bottom_up.stem, CaffeStem | DeepStem))
    # The heads use it too.
    backbone.padding = padding
    backbone.register_forward_pre_hook(padding.find_sizes)
    for module in bottom_up.stem.children():
        padding.clear_output_of(module, 1)
    level = _halvings(bottom_up.stem.stride)
    for stage in bottom_up.stages:
        for block in stage:
            _in_block(block, padding, level)
            level += _halvings(block.stride)
    if isinstance(backbone, FPN):
        _in_fpn(backbone, padding)
    else:
        levels = {name: _halvings(shape.stride) for name, shape in bottom_up.output_shape().items()}
        backbone.register_forward_hook(partial(padding.clear_maps, levels))
    return backbone


def ignore_padding_in_heads(model: nn.Module) -> None:
    """Makes the heads of a detector ignore padding, if its backbone does; other detectors are not changed.

    Convolutions in the heads see the padding as 0, and their norms (GN) skip it. In inference there are no proposals
    and no detections at positions in the padding, a head for semantic segmentation works on one image at a time, and
    RoIAlign continues the last row and column of an image, as it does at the end of a map. The detections in an image
    then do not depend on its batch. detectron2's own tools do not call this function; there only the features do not
    depend on the batch.

    Args:
        model: detectron2's `GeneralizedRCNN` or `PanopticFPN` with its RPN, `RetinaNet` or `FCOS`; changed in place.
            The dense heads of other detectors are not changed.
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
            module.register_forward_pre_hook(padding.extend_inputs)
        # Not a subclass, which may do something else.
        elif type(module) is SemSegFPNHead:
            module.__class__ = _ImagewiseSemSegHead
            module.padding = padding
            module.strides = {name: strides[name] for name in module.in_features}


class Padding:
    """The sizes of the images in the current batch, for the layers of one network.

    Padding is everything to the right of and below the last value that is not exactly 0, because detectron2's
    `ImageList` pads normalized images with 0. A border of the image itself is 0 only if it has exactly the colour of
    the pixel mean: black, if the mean is 0. Such a border counts as padding, in every batch.

    Args:
        unpadded_pool: the max pool of the stem has no padding, as in the Caffe models; its output has one row and
            column less if the size of its input is odd.
    """

    def __init__(self, *, unpadded_pool: bool) -> None:
        self._unpadded_pool = unpadded_pool
        self._sizes = torch.empty(0)
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    def find_sizes(self, _backbone: nn.Module, inputs: tuple[Tensor]) -> None:
        """Starts a new batch: the input of the backbone is (N, 3, H, W), normalized and padded with 0."""
        self._masks = {}
        inside = (inputs[0] != 0).any(dim=1)
        ends = []
        for dim in (2, 1):
            places = torch.arange(1, inside.shape[3 - dim] + 1, device=inside.device)
            ends.append((inside.any(dim=dim) * places).amax(dim=1))
        self._sizes = torch.stack(ends, dim=1)

    def sizes(self, level: int) -> Tensor:
        """(N, 2): height and width of each image in a map that was halved `level` times; at least 1."""
        sizes = self._sizes
        for halved in range(1, level + 1):
            dropped = 1 if halved == 2 and self._unpadded_pool else 0
            sizes = (sizes + 1 - dropped) // 2
        return sizes.clamp(min=1)

    def mask(self, x: Tensor, level: int) -> Tensor:
        """(N, 1, H, W) in the dtype of `x`: 1 in the image, 0 in the padding.

        Args:
            x: (N, C, H, W), a map that was halved `level` times.
        """
        key = (level, x.dtype)
        if key not in self._masks:
            sizes = self.sizes(level)
            rows = torch.arange(x.shape[2], device=x.device) < sizes[:, :1]
            columns = torch.arange(x.shape[3], device=x.device) < sizes[:, 1:]
            self._masks[key] = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype)
        return self._masks[key]

    def extend_images(self, x: Tensor, level: int) -> Tensor:
        """Copies the last row and column of each image into the first row and column of its padding.

        Args:
            x: (N, C, H, W), a map that was halved `level` times, with 0 in the padding.
        """
        sizes = self.sizes(level)
        for dim in (2, 3):
            end = sizes[:, dim - 2].reshape(-1, 1, 1, 1)
            shape = [1, 1, 1, 1]
            shape[dim] = -1
            beyond = torch.arange(x.shape[dim], device=x.device).reshape(shape) == end
            index = (end - 1).expand(*(1 if place == dim else length for place, length in enumerate(x.shape)))
            x = torch.addcmul(x, x.gather(dim, index), beyond.to(x.dtype))
        return x

    def extend_inputs(self, pooler: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """:meth:`extend_images` for the maps that RoIAlign reads."""
        maps, *rest = inputs
        levels = [_halvings(1 / level_pooler.spatial_scale) for level_pooler in pooler.level_poolers]
        return ([self.extend_images(x, level) for x, level in zip(maps, levels, strict=True)], *rest)

    def clear_input_of(self, layer: nn.Module, level: int) -> None:
        """From now on, the layer sees 0 in the padding of its input, a map that was halved `level` times."""
        layer.register_forward_pre_hook(partial(self._clear_input, level))

    def clear_output_of(self, layer: nn.Module, level: int) -> None:
        """From now on, the output of the layer has 0 in the padding."""
        layer.register_forward_hook(partial(self._clear_output, level))

    def clear_maps(
        self, levels: dict[str, int], _layer: Any, _inputs: Any, maps: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Maps by name, with 0 in the padding of those in `levels`."""
        return {name: x * self.mask(x, levels[name]) if name in levels else x for name, x in maps.items()}

    def _clear_input(self, level: int, _layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        # Not in place: other layers use this map too.
        return (inputs[0] * self.mask(inputs[0], level),)

    def _clear_output(self, level: int, _layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # In place: no gradient needs the output of a convolution, and no other layer has it yet.
        return output.mul_(self.mask(output, level))


class ImageSqueeze(nn.Module):
    """The average or the maximum (or both) over the positions of each image, without its padding.

    Args:
        squeeze: the squeeze to replace: `nn.AdaptiveAvgPool2d(1)`, `nn.AdaptiveMaxPool2d(1)` or :class:`AvgMaxSqueeze`.
        padding: the padding of the batch.
        level: how often the map was halved.
    """

    def __init__(self, squeeze: nn.Module, *, padding: Padding, level: int) -> None:
        super().__init__()
        self.average = isinstance(squeeze, nn.AdaptiveAvgPool2d | AvgMaxSqueeze)
        self.maximum = isinstance(squeeze, nn.AdaptiveMaxPool2d | AvgMaxSqueeze)
        self.padding = padding
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1), or to (N, 2C, 1, 1) for average and maximum."""
        mask = self.padding.mask(x, self.level)
        squeezed = []
        if self.average:
            # A matrix product reads the map once; a product with the mask would write another map.
            total = torch.bmm(x.flatten(2), (mask * UNIT).flatten(2).transpose(1, 2))
            pixels = self.padding.sizes(self.level).prod(dim=1)[:, None, None]
            squeezed.append((total / (UNIT * pixels)).to(x.dtype)[..., None])
        if self.maximum:
            squeezed.append(F.adaptive_max_pool2d(x.masked_fill(mask == 0, -torch.inf), 1))
        return squeezed[0] if len(squeezed) == 1 else torch.cat(squeezed, dim=1)


def _in_block(block: Any, padding: Padding, level: int) -> None:
    after_conv1 = level + _halvings(block.conv1.stride[0])
    padding.clear_output_of(block.conv1, after_conv1)
    if any(conv is not None and max(conv.kernel_size) > 1 for conv in (block.conv1, block.shortcut)):
        padding.clear_input_of(block, level)
    se = getattr(block, "se", None)
    if isinstance(se, SqueezeExcitation) and not isinstance(se.squeeze, nn.Identity):
        levels = {"pre": level, "3x3": after_conv1 + _halvings(block.conv2.stride[0])}
        here = levels.get(block.position, level + _halvings(block.stride))
        se.squeeze = ImageSqueeze(se.squeeze, padding=padding, level=here)


def _in_fpn(fpn: FPN, padding: Padding) -> None:
    shapes = fpn.bottom_up.output_shape()
    levels = [_halvings(shapes[name].stride) for name in fpn.in_features]
    convs = {fpn.get_submodule(f"fpn_output{level}"): level for level in levels}
    if isinstance(fpn.top_block, LastLevelP6P7):
        convs |= {fpn.top_block.p6: max(levels), fpn.top_block.p7: max(levels) + 1}
    for conv, level in convs.items():
        padding.clear_input_of(conv, level)
        after = level + _halvings(conv.stride[0])
        if hasattr(conv, "se"):
            conv.se.squeeze = ImageSqueeze(conv.se.squeeze, padding=padding, level=after)
        padding.clear_output_of(conv, after)


def _halvings(stride: float) -> int:
    return round(math.log2(stride))


class _HeadPadding:
    """Clears the padding in a head that is applied to several maps, one after another.

    Args:
        padding: the padding of the batch.
        strides: the strides of the maps, in order.
    """

    def __init__(self, padding: Padding, strides: list[int]) -> None:
        self.padding = padding
        self.levels = [_halvings(stride) for stride in strides]
        self.by_size: dict[tuple[int, int], int] = {}

    def install(self, head: nn.Module) -> None:
        head.register_forward_pre_hook(self.begin)
        for module in head.modules():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                module.register_forward_pre_hook(self.clear)
            elif isinstance(module, nn.GroupNorm):
                module.register_forward_hook(self.normalize)
        head.register_forward_hook(self.remove_detections)

    def begin(self, head: nn.Module, inputs: tuple[list[Tensor]]) -> None:
        # Maps of the same size are 1x1, without padding.
        self.by_size = {_size(x): level for x, level in zip(inputs[0], self.levels, strict=True)}

    def mask(self, x: Tensor) -> Tensor:
        return self.padding.mask(x, self.by_size[_size(x)])

    def clear(self, conv: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * self.mask(inputs[0]),)

    def normalize(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """GN with mean and variance over the images without padding, in float32 like PyTorch's GN."""
        x = inputs[0].float().unflatten(1, (norm.num_groups, -1))
        mask = self.mask(inputs[0]).float().unsqueeze(1)
        values = mask.sum(dim=(2, 3, 4), keepdim=True) * x.shape[2]
        x = x - (x * mask).sum(dim=(2, 3, 4), keepdim=True) / values
        variance = (x.square() * mask).sum(dim=(2, 3, 4), keepdim=True) / values
        x = (x * (variance + norm.eps).rsqrt()).flatten(1, 2)
        if norm.affine:
            x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return x.to(output.dtype)

    def remove_detections(
        self, head: nn.Module, inputs: Any, output: tuple[list[Tensor], ...]
    ) -> tuple[list[Tensor], ...]:
        """Sets the logits, the first output of the head, to -inf in the padding."""
        # In training, anchors in the padding count as background.
        if head.training:
            return output
        masks = [self.padding.mask(x, level) for x, level in zip(output[0], self.levels, strict=True)]
        logits = [x.masked_fill(mask == 0, -torch.inf) for x, mask in zip(output[0], masks, strict=True)]
        return (logits, *output[1:])


def _size(x: Tensor) -> tuple[int, int]:
    # In a trace, sizes are tensors.
    return int(x.shape[2]), int(x.shape[3])


class _ImagewiseSemSegHead(SemSegFPNHead):
    """detectron2's head, applied to one image at a time in inference.

    In a batch, its norm (by default GN) and its bilinear upsampling would include the padding.
    """

    padding: Padding
    strides: dict[str, int]

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Maps by name, each (N, C, H / its stride, W / its stride), to (N, classes, H / 4, W / 4)."""
        if self.training:
            return super().layers(features)
        first = features[self.in_features[0]]
        height, width = first.shape[2:]
        # All maps must end at the same place, as for a single image.
        coarsest = max(self.strides.values())
        outputs = []
        for place, size in enumerate(-(-self.padding.sizes(0) // coarsest) * coarsest):
            alone = {}
            for name, stride in self.strides.items():
                rows, columns = (size // stride).tolist()
                alone[name] = features[name][place : place + 1, :, :rows, :columns]
            output = super().layers(alone)
            # Repeat the last row and column, so that resizing sees the end of a map here.
            outputs.append(F.pad(output, (0, width - output.shape[3], 0, height - output.shape[2]), mode="replicate"))
        return torch.cat(outputs)
