"""Makes a detector or a backbone faster for inference, with the same outputs."""

import copy
from functools import partial
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from ...errors import UserError
from ..blocks import HalvedBottleneckBlock, SEBasicBlock, SEBottleneckBlock, SENetBottleneckBlock
from ..ops.folded_conv import FoldedConv2d
from .folded_convolution import fold_norms
from .fused_blocks import FusedBlock
from .fused_roi_heads import fuse_roi_heads

# The convolutions of the residual branch, in order. Exactly these types: a subclass may do something else.
FUSIBLE: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((BasicBlock, SEBasicBlock), ("conv1", "conv2")),
    **dict.fromkeys(
        (BottleneckBlock, SEBottleneckBlock, HalvedBottleneckBlock, SENetBottleneckBlock), ("conv1", "conv2", "conv3")
    ),
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def fuse_for_inference(model: nn.Module, *, dtype: torch.dtype | None = None, compile: str | None = None) -> nn.Module:
    """Makes a faster copy of a detector or backbone, for inference only; the model itself is not changed.

    BN and FrozenBN are folded into the convolutions, and the memory format of the backbone is channels-last. In the
    blocks of detectron2's ResNet and of SE backbones, the gate of a bottleneck is computed before its last convolution.
    On a CPU each convolution and its ReLU are one pass over memory, the last one includes the gate and the sum, and
    RoIAlign and the box head read channels-last memory. On a GPU, gate, sum and ReLU are one pass. Other blocks, and
    blocks with SE in another position, only have their norms folded. Within a stage, a block may overwrite the output
    of the block before it; the outputs of stages are kept.

    The outputs equal those of the model in evaluation within rounding: 1e-5 of the largest value at each FPN level in
    float32.

    Args:
        model: a detectron2 detector or backbone.
        dtype: the dtype in which backbone and FPN compute. `torch.bfloat16` and `torch.float16` keep about
            2 and 3 digits. The maps are returned in float32, or under autocast in this dtype.
        compile: a mode of `torch.compile` for backbone and FPN, with dynamic height and width: `default`,
            `reduce-overhead` (CUDA graphs, one for each shape) or `max-autotune`.

    Raises:
        UserError: an unknown mode.
    """
    if compile is not None and compile not in COMPILE_MODES:
        raise UserError("config.bad_value", f"compile: {compile!r} is not one of {', '.join(COMPILE_MODES)}")
    model = fuse_layers(model, dtype=dtype)
    fuse_roi_heads(model)
    if compile is not None:
        backbone: Any = getattr(model, "backbone", model)
        backbone.compile(mode=compile, dynamic=True)
    return model


def fuse_layers(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """The part of :func:`fuse_for_inference` that can be exported: without the pooling of regions."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    _fuse_blocks(model)
    backbone: Any = getattr(model, "backbone", model)
    backbone.to(dtype=dtype, memory_format=torch.channels_last)
    backbone.register_forward_pre_hook(partial(_enter, dtype=dtype))
    if dtype is not None:
        backbone.register_forward_hook(_leave)
    return model


def _fuse_blocks(module: nn.Module) -> None:
    child: Any
    for name, child in module.named_children():
        convs = [child.get_submodule(conv) for conv in FUSIBLE.get(type(child), ())]
        standard = getattr(child, "position", "standard") == "standard"
        # A norm such as GN can't be folded.
        if convs and standard and all(isinstance(conv, FoldedConv2d) for conv in convs):
            # The input of a stage is the output of another stage, which may be an output of the backbone.
            within = isinstance(module, nn.Sequential) and name != "0"
            fused = FusedBlock(convs, shortcut=child.shortcut, se=getattr(child, "se", None), keep_input=not within)
            fused._forward_pre_hooks.update(child._forward_pre_hooks)  # clears the padding
            module.add_module(name, fused)
        else:
            _fuse_blocks(child)


def _enter(backbone: nn.Module, inputs: tuple[Tensor], *, dtype: torch.dtype | None) -> tuple[Tensor]:
    return (inputs[0].to(dtype=dtype, memory_format=torch.channels_last),)


def _leave(backbone: nn.Module, inputs: Any, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    if torch.is_autocast_enabled(next(iter(maps.values())).device.type):
        return maps
    return {name: values.float() for name, values in maps.items()}
