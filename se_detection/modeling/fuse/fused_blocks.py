"""Residual blocks for inference, with and without SE."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.folded_conv import FoldedConv2d
from ..ops.residual_gate import residual_gate
from ..padding import ImageSqueeze
from ..squeeze_excitation import SqueezeExcitation


class EarlyGate(nn.Module):
    """The SE gate for the output of a 1x1 convolution, computed from its input, which has fewer channels.

    The mean of the output of a 1x1 convolution is the convolution of the mean of its input. There is no ReLU between it
    and the first layer of the excitation, so both are one matrix.

    Args:
        conv: a 1x1 convolution with stride 1 and without groups.
        se: with the squeeze `avg`.
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
        self.weight2 = nn.Parameter(se.fc2.weight.detach().flatten(1), requires_grad=False)
        self.bias2 = se.fc2.bias
        self.activation = se.activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W), the input of the convolution, to (N, C_out, 1, 1)."""
        hidden = F.relu(F.linear(self.squeeze(x).flatten(1), self.weight, self.bias))
        return self.activation(F.linear(hidden, self.weight2, self.bias2))[:, :, None, None]


class FusedBlock(nn.Module):
    """A residual block that writes its output into the memory of its shortcut if possible.

    Args:
        convs: the convolutions of the residual branch, in order, each but the last followed by a ReLU.
        shortcut: the projection, or None.
        se: SE on the residual, or None.
        keep_input: don't overwrite the input of the block; an identity shortcut is copied.
    """

    def __init__(
        self,
        convs: list[FoldedConv2d],
        *,
        shortcut: FoldedConv2d | None,
        se: SqueezeExcitation | None,
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
            return residual_gate(residual, self.se.gate(residual), shortcut)
        return self.last.add_to(shortcut, x, None if self.early_gate is None else self.early_gate(x))


def _is_average(squeeze: nn.Module) -> bool:
    if isinstance(squeeze, ImageSqueeze):
        return squeeze.average and not squeeze.maximum
    return isinstance(squeeze, nn.AdaptiveAvgPool2d)
