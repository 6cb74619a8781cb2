"""A lower bound of a network's time, from the work of its layers and the speed of the machine."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from se_detection.modeling.blocks import SEResidualBlock

from .case import Case
from .layers import Layer, count_layers
from .networks import SE, build_network
from .rates import Convolution, Copy
from .ratio import Array
from .workload import make_workload

COPY, CONVOLUTION = "copy", "convolution"


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
