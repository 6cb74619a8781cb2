"""DropBlock in detectron2's ResNets, with and without SE (Ghiasi, Lin and Le, NeurIPS 2018)."""

from typing import Any

from torch import Tensor, nn

# As timm's ResNets: block size, and a factor of the rate, whose product with the rate is the dropped share of a map.
STAGES = {"res4": (5, 0.25), "res5": (3, 1.0)}


def add_drop_block(resnet: nn.Module, rate: float) -> None:
    """Adds DropBlock to each block of `res4` and `res5`, after the norm of the first 3x3 convolution, as in timm.

    In a C4 detector, `res5` is in the heads and has none. The layers have no weights, and do nothing in evaluation.

    Args:
        resnet: a ResNet of detectron2 or of this project.
        rate: the dropped share of `res5`; of `res4` a quarter of it.
    """
    from timm.layers import DropBlock2d

    for stage, (size, scale) in STAGES.items():
        for block in getattr(resnet, stage, ()):
            conv = block.conv2 if hasattr(block, "conv3") else block.conv1
            conv.add_module("drop_block", DropBlock2d(rate, block_size=size, gamma_scale=scale))
            conv.register_forward_hook(_drop)


def _drop(conv: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return conv.drop_block(output)  # type: ignore[operator]


def drop_blocks(model: nn.Module) -> list[nn.Module]:
    """The DropBlock layers of a model, those of timm's networks too."""
    from timm.layers import DropBlock2d

    return [module for module in model.modules() if isinstance(module, DropBlock2d)]
