"""The least time that a network can take, by what its layers must do and what the machine can do."""

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
    """The bound of a case, for our network; the rates are measured in the rounds of the arms.

    Args:
        case: the case.
    """

    def __init__(self, case: Case) -> None:
        network = build_network(SE, case)
        for block in network.modules():
            if isinstance(block, SEResidualBlock):
                # What is computed again to spare memory need not be.
                block.projection = lambda x: ()  # type: ignore[method-assign]
        self.layers = count_layers(network, make_workload(network, case, autocast=True))
        self.copy = Copy(case.device)
        self.convolution = Convolution(case.device, case.dtype)
        # What is to be timed in each round.
        self.runs: Mapping[str, Callable[[], object]] = {COPY: self.copy, CONVOLUTION: self.convolution}
        for run in self.runs.values():
            run()

    def seconds(self, times: Mapping[str, Array]) -> Array:
        """(rounds,) seconds that the network takes at least, from those of `runs`."""
        return least_seconds(self.layers, self.copy.work / times[COPY], self.convolution.work / times[CONVOLUTION])


def least_seconds(layers: Sequence[Layer], copied: Array, computed: Array) -> Array:
    """Each layer takes as long as its bytes or its operations do, whichever is more, and one comes after the other.

    Args:
        copied: (rounds,), the bytes that a large copy moves in a second.
        computed: (rounds,), the operations of a large convolution in a second.

    Returns:
        (rounds,), seconds.
    """
    moved = np.array([layer.moved for layer in layers])
    flops = np.array([layer.flops for layer in layers])
    return np.maximum(moved / copied[:, None], flops / computed[:, None]).sum(axis=1)
