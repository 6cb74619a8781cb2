"""A detector made faster for inference, with the same outputs."""

import copy
from functools import partial
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from ...errors import UserError
from ..blocks import HalvedBottleneckBlock, SEBasicBlock, SEBottleneckBlock, SENetBottleneckBlock
from .folded_convolution import FoldedConv2d, fold_norms
from .fused_blocks import FusedBlock

# Exactly these types: what a subclass does is not known. The convolutions of the residual branch, in order.
FUSIBLE: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((BasicBlock, SEBasicBlock), ("conv1", "conv2")),
    **dict.fromkeys(
        (BottleneckBlock, SEBottleneckBlock, HalvedBottleneckBlock, SENetBottleneckBlock), ("conv1", "conv2", "conv3")
    ),
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def fuse_for_inference(model: nn.Module, *, dtype: torch.dtype | None = None, compile: str | None = None) -> nn.Module:
    """A faster copy of a detector or backbone, for inference alone; the model itself is left as it is.

    BN and FrozenBN are folded into the convolutions, and memory is channels-last in backbone and FPN. In the blocks of
    detectron2's ResNet and of SE backbones, a bottleneck's gate is computed before its last convolution; on a CPU each
    convolution and its ReLU are one pass over memory, the last one with the gate and the sum; on a GPU gate, sum and
    ReLU are. A block of another kind, or with SE in another position, is folded and otherwise as it was. What a block
    gives is written over by the next one of its stage: the stages' outputs last, those between them don't.

    Outputs are those of the model in evaluation within rounding: 1e-5 of the largest value at each FPN level in
    float32.

    Args:
        model: a detectron2 detector, or a backbone.
        dtype: what the backbone (backbone and FPN) computes in; `torch.bfloat16` or `torch.float16` keep about 2 or 3
            digits. Their maps are given as float32 unless autocast is on, under which the heads take them as they are.
        compile: a mode of `torch.compile` for backbone and FPN, with dynamic height and width: `default`,
            `reduce-overhead` (CUDA graphs, one for each shape that it meets) or `max-autotune`.

    Raises:
        UserError: an unknown mode.
    """
    if compile is not None and compile not in COMPILE_MODES:
        raise UserError(f"compile: {compile!r} is not one of {', '.join(COMPILE_MODES)}")
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    _fuse_blocks(model)
    backbone: Any = getattr(model, "backbone", model)
    backbone.to(dtype=dtype, memory_format=torch.channels_last)
    backbone.register_forward_pre_hook(partial(_enter, dtype=dtype))
    if dtype is not None:
        backbone.register_forward_hook(_leave)
    if compile is not None:
        backbone.compile(mode=compile, dynamic=True)
    return model


def _fuse_blocks(module: nn.Module) -> None:
    child: Any
    for name, child in module.named_children():
        convs = [child.get_submodule(conv) for conv in FUSIBLE.get(type(child), ())]
        standard = getattr(child, "position", "standard") == "standard"
        # A norm such as GN can't be folded.
        if convs and standard and all(isinstance(conv, FoldedConv2d) for conv in convs):
            # A stage's input is the output of another, which the caller may have asked for.
            within = isinstance(module, nn.Sequential) and name != "0"
            fused = FusedBlock(convs, child.shortcut, getattr(child, "se", None), keep_input=not within)
            fused._forward_pre_hooks.update(child._forward_pre_hooks)  # that which clears the padding
            module.add_module(name, fused)
        else:
            _fuse_blocks(child)


def _enter(backbone: nn.Module, inputs: tuple[Tensor], *, dtype: torch.dtype | None) -> tuple[Tensor]:
    return (inputs[0].to(dtype=dtype, memory_format=torch.channels_last),)


def _leave(backbone: nn.Module, inputs: Any, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    if torch.is_autocast_enabled(next(iter(maps.values())).device.type):
        return maps
    return {name: values.float() for name, values in maps.items()}
