"""Trunks and FPN whose features of a picture do not depend on the batch that it was padded into."""

import math
from functools import partial
from typing import Any

from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from ..errors import UserError
from .padding import Padding, PictureSqueeze
from .squeeze_excitation import SqueezeExcitation
from .stems import CaffeStem, DeepStem


def ignore_padding(backbone: Backbone) -> Backbone:
    """From now on, a backbone computes each picture's features as if the picture were alone and not padded.

    detectron2 pads a batch's pictures to one size. Once a norm or a bias has made that padding another value than 0, it
    leaks into the features: by each convolution near the picture's border, and by SE's average everywhere. Here the
    padding is 0 again before each layer that looks beyond one position, as it is outside of a map, and squeezes leave
    it out. What the backbone gives is 0 in the padding. In training, the statistics of BN still take it in.

    Args:
        backbone: detectron2's `ResNet` (of plain or SE blocks), alone or under its `FPN`; changed in place. Weights and
            the names of parameters stay as they are.

    Returns:
        The same backbone: in a lazy config, `model.backbone = LazyCall(ignore_padding)(backbone=model.backbone)`.

    Raises:
        UserError: it is another backbone, or has norms whose statistics always take in the padding (GN).
    """
    trunk = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    if not isinstance(trunk, ResNet):
        raise UserError(f"MODEL.SE.IGNORE_PADDING: {type(trunk).__name__} is no ResNet; set it to False")
    for module in backbone.modules():
        if isinstance(module, nn.GroupNorm):
            raise UserError(
                "MODEL.SE.IGNORE_PADDING: a norm of kind GN takes in the padding; set it to False, or choose another "
                "MODEL.RESNETS.NORM and MODEL.FPN.NORM"
            )
    padding = Padding(unpadded_pool=isinstance(trunk.stem, CaffeStem | DeepStem))
    # For heads, which may ask it too.
    backbone.padding = padding
    backbone.register_forward_pre_hook(partial(_look_at, padding=padding))
    for module in trunk.stem.children():
        _clear_output(module, padding, 1)
    level = _halvings(trunk.stem.stride)
    for stage in trunk.stages:
        for block in stage:
            _in_block(block, padding, level)
            level += _halvings(block.stride)
    if isinstance(backbone, FPN):
        _in_fpn(backbone, padding)
    else:
        levels = {name: _halvings(shape.stride) for name, shape in trunk.output_shape().items()}
        backbone.register_forward_hook(partial(_clear_maps, padding=padding, levels=levels))
    return backbone


def _in_block(block: Any, padding: Padding, level: int) -> None:
    after_conv1 = level + _halvings(block.conv1.stride[0])
    _clear_output(block.conv1, padding, after_conv1)
    if any(conv is not None and max(conv.kernel_size) > 1 for conv in (block.conv1, block.shortcut)):
        block.register_forward_pre_hook(partial(_clear_inputs, padding=padding, level=level))
    se = getattr(block, "se", None)
    if isinstance(se, SqueezeExcitation) and not isinstance(se.squeeze, nn.Identity):
        levels = {"pre": level, "3x3": after_conv1 + _halvings(block.conv2.stride[0])}
        se.squeeze = PictureSqueeze(se.squeeze, padding, levels.get(block.position, level + _halvings(block.stride)))


def _in_fpn(fpn: FPN, padding: Padding) -> None:
    convs = {fpn.get_submodule(f"fpn_output{level}"): level for level in _levels_of(fpn)}
    if isinstance(fpn.top_block, LastLevelP6P7):
        top = max(convs.values())
        convs |= {fpn.top_block.p6: top, fpn.top_block.p7: top + 1}
    for conv, level in convs.items():
        conv.register_forward_pre_hook(partial(_clear_inputs, padding=padding, level=level))
        _clear_output(conv, padding, level + _halvings(conv.stride[0]))


def _levels_of(fpn: FPN) -> list[int]:
    shapes = fpn.bottom_up.output_shape()
    return [_halvings(shapes[name].stride) for name in fpn.in_features]


def _halvings(stride: int) -> int:
    return round(math.log2(stride))


def _clear_output(layer: nn.Module, padding: Padding, level: int) -> None:
    layer.register_forward_hook(partial(_clear, padding=padding, level=level))


def _look_at(backbone: nn.Module, inputs: tuple[Tensor], *, padding: Padding) -> None:
    padding.look_at(inputs[0])


def _clear_inputs(layer: nn.Module, inputs: tuple[Tensor], *, padding: Padding, level: int) -> tuple[Tensor]:
    # Others hold this map as well, so it isn't changed.
    return (inputs[0] * padding.mask(inputs[0], level),)


def _clear(layer: nn.Module, inputs: Any, output: Tensor, *, padding: Padding, level: int) -> Tensor:
    # A convolution's output is needed by no gradient, and nobody has seen it yet.
    return output.mul_(padding.mask(output, level))


def _clear_maps(
    trunk: nn.Module, inputs: Any, maps: dict[str, Tensor], *, padding: Padding, levels: dict[str, int]
) -> dict[str, Tensor]:
    return {
        name: values * padding.mask(values, levels[name]) if name in levels else values for name, values in maps.items()
    }
