"""A lower bound of a network's time, from the work of its layers and the speed of the machine."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from se_detection.modeling.blocks import SEResidualBlock

from .case import DTYPES, Case
from .layers import Layer, count_layers
from .networks import SE, build_network
from .ratio import Array
from .workload import make_workload

COPY, CONVOLUTION = "copy", "convolution"
# Bytes; larger than a CPU's caches.
COPIED = 256 * 2**20
# Images, channels, and the maps' side: some 10 ms on two CPU cores, about 1 ms on a GPU.
CONVOLUTION_SIZE = {"cpu": (1, 256, 64), "cuda": (8, 1024, 64)}


class Copy:
    """Copies a large tensor; `work` is the number of bytes read and written."""

    work = 2 * COPIED

    def __init__(self, device: str) -> None:
        self.source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)


class Convolution:
    """A 3x3 convolution of large maps; `work` is its number of floating-point operations.

    It uses the library and the dtype of the networks' convolutions. On CPUs it is 10 to 15 % faster than `torch.mm`, so
    `torch.mm` would not give a lower bound.
    """

    def __init__(self, device: str, dtype: str) -> None:
        images, channels, side = CONVOLUTION_SIZE[device]
        self.work = 2 * images * side**2 * channels**2 * 9
        shapes = (images, channels, side, side), (channels, channels, 3, 3)
        self.maps, self.weight = (
            torch.randn(shape, dtype=DTYPES[dtype], device=device).to(memory_format=torch.channels_last)
            for shape in shapes
        )

    def __call__(self) -> None:
        F.conv2d(self.maps, self.weight, padding=1)


class Bound:
    """The lower bound of our network's time in a case. The machine's speed is measured in the rounds of the models."""

    def __init__(self, case: Case) -> None:
        network = build_network(SE, case)
        for block in network.modules():
            if isinstance(block, SEResidualBlock):
                # Recomputation, which saves memory, is not necessary work.
                block.projection = lambda x: ()  # type: ignore[method-assign]
        self.layers = count_layers(network, make_workload(network, case, autocast=True))
        self.copy = Copy(case.device)
        self.convolution = Convolution(case.device, case.dtype)
        # To be timed in each round.
        self.runs: Mapping[str, Callable[[], object]] = {COPY: self.copy, CONVOLUTION: self.convolution}
        for run in self.runs.values():
            run()

    def seconds(self, times: Mapping[str, Array]) -> Array:
        """The lower bound in seconds, (rounds,), from the times of `runs`."""
        return least_seconds(self.layers, self.copy.work / times[COPY], self.convolution.work / times[CONVOLUTION])


def least_seconds(layers: Sequence[Layer], copied: Array, computed: Array) -> Array:
    """The sum over layers of the time for the bytes or for the operations, whichever is longer.

    Args:
        copied: (rounds,), bytes per second of a large copy.
        computed: (rounds,), operations per second of a large convolution.

    Returns:
        (rounds,), seconds.
    """
    moved = np.array([layer.moved for layer in layers])
    flops = np.array([layer.flops for layer in layers])
    return np.maximum(moved / copied[:, None], flops / computed[:, None]).sum(axis=1)
