"""A lower bound of a network's time, from the work of its layers and the speed of the machine."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from se_detection.modeling.blocks import SEResidualBlock

from .networks import DTYPES, SE, Case, build_network
from .rounds import Array
from .workload import make_workload

COPY, CONVOLUTION, PRODUCT = "copy", "convolution", "product"
# Bytes; larger than a CPU's caches.
COPIED = 256 * 2**20
# Images, channels, and the maps' side: some 10 ms on two CPU cores, about 1 ms on a GPU.
CONVOLUTION_SIZE = {"cpu": (1, 256, 64), "cuda": (8, 1024, 64)}
# The matrices' side.
PRODUCT_SIZE = {"cpu": 1024, "cuda": 4096}


class Layer(NamedTuple):
    """The bytes that a layer reads and writes, and its floating-point operations (two for a multiply-add)."""

    moved: int
    flops: int


class Bound:
    """The lower bound of our network's time in a case.

    It is the sum over layers of the time for the bytes or for the operations, whichever is longer. The machine's speed
    is that of a large copy, and of a large 3x3 convolution or matrix product, measured in the rounds of the models.
    (Which of the two is faster depends on the CPU: the convolution by 10 to 15 % with AVX-512, the product with AVX2.)
    """

    def __init__(self, case: Case) -> None:
        network = build_network(SE, case)
        for block in network.modules():
            if isinstance(block, SEResidualBlock) and block.shortcut is not None:
                # Recomputation of the shortcut, which saves memory, is not necessary work. A view is not recomputed.
                block.shortcut.register_forward_hook(lambda _module, _inputs, output: output.view_as(output))
        self.layers = count_layers(network, make_workload(network, case, autocast=True))
        source = torch.ones(COPIED, dtype=torch.uint8, device=case.device)
        target = torch.zeros_like(source)
        images, channels, side = CONVOLUTION_SIZE[case.device]
        maps, weight = (
            torch.randn(shape, dtype=DTYPES[case.dtype], device=case.device).to(memory_format=torch.channels_last)
            for shape in ((images, channels, side, side), (channels, channels, 3, 3))
        )
        size = PRODUCT_SIZE[case.device]
        matrix = torch.randn(size, size, dtype=DTYPES[case.dtype], device=case.device)
        # Bytes read and written, or floating-point operations.
        self.work = {
            COPY: 2 * COPIED,
            CONVOLUTION: 2 * images * side**2 * channels**2 * 9,
            PRODUCT: 2 * size**3,
        }
        # To be timed in each round.
        self.runs: Mapping[str, Callable[[], object]] = {
            COPY: lambda: target.copy_(source),
            CONVOLUTION: lambda: F.conv2d(maps, weight, padding=1),
            PRODUCT: lambda: matrix @ matrix,
        }
        for run in self.runs.values():
            run()

    def seconds(self, times: Mapping[str, Array]) -> Array:
        """The lower bound in seconds, (rounds,), from the times of `runs`."""
        moved, flops = np.array(self.layers).T
        by_work = {name: times[name][:, None] / work for name, work in self.work.items()}
        by_flop = np.minimum(by_work[CONVOLUTION], by_work[PRODUCT])
        return np.maximum(moved * by_work[COPY], flops * by_flop).sum(axis=1)


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
