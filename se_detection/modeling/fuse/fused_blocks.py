"""Residual blocks for inference, with and without SE."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.residual_gate import residual_gate, residual_sigmoid_gate
from ..padding import ImageSqueeze
from ..squeeze_excitation import SqueezeExcitation
from .folded_convolution import FoldedConv2d


class EarlyGate(nn.Module):
    """The gate of a 1x1 convolution's output, from the convolution's input, which has fewer channels.

    The mean of what a 1x1 convolution gives is the convolution of the mean; between it and the first layer of the
    excitation there is no ReLU, so that both are one matrix.

    Args:
        conv: 1x1, with stride 1 and no groups.
        se: with the average as its squeeze.
    """

    def __init__(self, conv: FoldedConv2d, se: SqueezeExcitation) -> None:
        super().__init__()
        first = se.fc1.weight.detach().double().flatten(1)
        bias = first @ conv.bias.detach().double()
        if se.fc1.bias is not None:
            bias = bias + se.fc1.bias.detach().double()
        weight = first @ conv.weight.detach().double().flatten(1)
        self.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        self.squeeze = se.squeeze
        self.fc2 = se.fc2
        self.activation = se.activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W), the convolution's input, to (N, C_out, 1, 1)."""
        hidden = F.relu(F.linear(self.squeeze(x).flatten(1), self.weight, self.bias))
        return self.activation(F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias))[:, :, None, None]


class FusedBlock(nn.Module):
    """A residual block whose output takes the place of its shortcut where it can.

    Args:
        convs: of the residual branch, in order; between each two comes a ReLU.
        shortcut: the projection, if there is one.
        se: on the residual, if there is one.
        keep_input: the block's input is needed elsewhere, so where it is the shortcut, a copy is.
    """

    def __init__(
        self,
        convs: list[FoldedConv2d],
        shortcut: FoldedConv2d | None,
        se: SqueezeExcitation | None,
        *,
        keep_input: bool,
    ) -> None:
        super().__init__()
        *first, self.last = convs
        for conv in first:
            conv.activation = F.relu
        self.first = nn.Sequential(*first)
        self.shortcut = shortcut
        self.se = se
        self.early_gate: EarlyGate | None = None
        pointwise = self.last.kernel_size == (1, 1) and self.last.stride == (1, 1) and self.last.groups == 1
        if se is not None and pointwise and _is_average(se.squeeze):
            self.early_gate = EarlyGate(self.last, se)
            self.se = None
        self.keep_input = keep_input

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        shortcut = x.clone() if self.keep_input and self.shortcut is None else x
        if self.shortcut is not None:
            shortcut = self.shortcut(x)
        x = self.first(x)
        if self.se is not None:
            residual = self.last(x)
            squeezed = not isinstance(self.se.squeeze, nn.Identity)
            # Without gradients any gate will do for the first, if it is one value a channel.
            join = residual_sigmoid_gate if squeezed else residual_gate
            return join(residual, self.se.gate(residual), shortcut)
        return self.last.add_to(shortcut, x, None if self.early_gate is None else self.early_gate(x))


def _is_average(squeeze: nn.Module) -> bool:
    if isinstance(squeeze, ImageSqueeze):
        return squeeze.average and not squeeze.maximum
    return isinstance(squeeze, nn.AdaptiveAvgPool2d)
