"""The squeeze-and-excitation block (Hu et al., arXiv 1709.01507, Sec. 3 and Fig. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.se_config import GATES, SQUEEZES, check_choice
from ..errors import UserError


class AvgMaxSqueeze(nn.Module):
    """Global average and global maximum, concatenated: (N, C, H, W) to (N, 2C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], dim=1)


class SqueezeExcitation(nn.Module):
    """Squeeze (global average), FC, ReLU, FC, gate (sigmoid); the gate scales the channels of the input.

    Shape: (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        reduction: the paper's r; the excitation has C // r hidden channels (Sec. 3.2).
        squeeze: `avg`, `max` (Table 11), `avgmax` (both, concatenated), or `none`: the paper's NoSqueeze (Table 16),
            where the two layers are applied at every position of the map.
        gate: `sigmoid`, `tanh`, `relu` (Table 12) or `hardsigmoid`.
        bias: whether the two layers have biases.
        gate_bias: added to the initial bias of the second layer; with 4, sigmoid gates start near 0.98 instead of 0.5.

    Raises:
        UserError: C // r is 0, or `squeeze` or `gate` is unknown.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        squeeze: str = "avg",
        gate: str = "sigmoid",
        bias: bool = True,
        gate_bias: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = channels // reduction
        if hidden < 1:
            raise UserError(f"a reduction ratio of {reduction} is too large for {channels} channels")
        self.squeeze = make_squeeze(squeeze)
        squeezed = 2 * channels if squeeze == "avgmax" else channels
        self.fc1 = nn.Conv2d(squeezed, hidden, kernel_size=1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1, bias=bias)
        if self.fc2.bias is not None:
            with torch.no_grad():
                self.fc2.bias += gate_bias
        self.activation = make_gate(gate)

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel: (N, C, H, W) to (N, C, 1, 1), or to (N, C, H, W) with the squeeze `none`."""
        return self.activation(self.fc2(F.relu(self.fc1(self.squeeze(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def make_squeeze(name: str) -> nn.Module:
    """A squeeze by name: (N, C, H, W) to (N, C, 1, 1), `avgmax` to (N, 2C, 1, 1), `none` to (N, C, H, W).

    Raises:
        UserError: an unknown name.
    """
    check_choice("squeeze", name, SQUEEZES)
    squeezes = {
        "avg": nn.AdaptiveAvgPool2d(1),
        "max": nn.AdaptiveMaxPool2d(1),
        "avgmax": AvgMaxSqueeze(),
        "none": nn.Identity(),
    }
    return squeezes[name]


def make_gate(name: str) -> nn.Module:
    """The function that turns the logits of the excitation into gates, by name.

    Raises:
        UserError: an unknown name.
    """
    check_choice("gate", name, GATES)
    gates = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "relu": nn.ReLU(), "hardsigmoid": nn.Hardsigmoid()}
    return gates[name]
