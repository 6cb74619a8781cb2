"""The bytes that a network's layers must move, and the operations that they must compute."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Layer:
    """The bytes that a layer reads and writes, and its floating-point operations (two for a multiply-add)."""

    moved: int
    flops: int


def count_layers(model: nn.Module, run: Callable[[], object]) -> list[Layer]:
    """The layers that a call runs: convolutions, matrix products and max pooling, and in training their backward.

    A layer reads its input and its weights once and writes its output once; the last convolution of a residual block
    also reads the shortcut. Everything else is free, as it can be done while a layer reads or writes: norms, sums,
    ReLUs, and SE's squeeze and gate. (The mean of a convolution's output follows from sums over its input, so the gate
    can be computed before the convolution that it scales.)

    Args:
        model: its residual blocks get hooks.
        run: calls the model.
    """
    counter = _Counter()

    def add_shortcut(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        last = counter.layers[-1]
        counter.layers[-1] = Layer(last.moved + output.nbytes, last.flops)

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, BasicBlock | BottleneckBlock):
                last = module.conv2 if isinstance(module, BasicBlock) else module.conv3
                hooks.callback(last.register_forward_hook(add_shortcut).remove)
        with counter:
            run()
    return counter.layers


class _Counter(TorchDispatchMode):
    """Records the layers among all operations that PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        flops = flop_registry.get(func.overloadpacket)
        if flops or func.overloadpacket is torch.ops.aten.max_pool2d_with_indices:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
            # The indices of the maxima (integers) are needed for autograd only.
            moved = sum(tensor.nbytes for tensor in tensors if tensor.is_floating_point())
            self.layers.append(Layer(moved, int(flops(*args, **kwargs, out_val=output)) if flops else 0))
        return output
