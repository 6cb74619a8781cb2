"""The squeeze-and-excitation block (Hu et al., arXiv 1709.01507, Sec. 3 and Fig. 1)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.se_config import GATES, IDENTITY_GATES, INITS, SQUEEZES, SEConfig, check_choice
from ..errors import UserError, counted


class AvgMaxSqueeze(nn.Module):
    """Global average and global maximum, concatenated: (N, C, H, W) to (N, 2C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], dim=1)


class DoubledSigmoid(nn.Sigmoid):
    """2 * sigmoid(x): exactly 1 for 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.sigmoid(x)


class DoubledHardsigmoid(nn.Hardsigmoid):
    """2 * hardsigmoid(x): exactly 1 for 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.hardsigmoid(x)


SQUEEZE_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "avg": partial(nn.AdaptiveAvgPool2d, 1),
    "max": partial(nn.AdaptiveMaxPool2d, 1),
    "avgmax": AvgMaxSqueeze,
    "none": nn.Identity,
}
GATE_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "hardsigmoid": nn.Hardsigmoid,
}
IDENTITY_GATE_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": DoubledSigmoid,
    "hardsigmoid": DoubledHardsigmoid,
}


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
        init: `default`, or `identity`: the gate is doubled, and the second layer starts at 0, so that all gates start
            at exactly 1 and the block returns its input; for the gates `sigmoid` and `hardsigmoid`.

    Raises:
        UserError: C // r is 0, `squeeze`, `gate` or `init` is unknown, or `init` contradicts another argument.
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
        init: str = "default",
    ) -> None:
        super().__init__()
        check_choice("squeeze", squeeze, SQUEEZES)
        check_choice("gate", gate, GATES)
        check_choice("init", init, INITS)
        identity = init == "identity"
        if identity:
            check_choice("gate with init 'identity'", gate, IDENTITY_GATES)
            if gate_bias:
                raise UserError("config.bad_value", f"gate_bias: {gate_bias} contradicts init 'identity'; use 0")
        hidden = channels // reduction
        if hidden < 1:
            raise UserError(
                "config.bad_value",
                f"a reduction ratio of {reduction} is too large for {counted(channels, 'channel')}; give at most "
                f"{channels}",
            )
        self.init = init
        self.squeeze = SQUEEZE_LAYERS[squeeze]()
        squeezed = 2 * channels if squeeze == "avgmax" else channels
        self.fc1 = nn.Conv2d(squeezed, hidden, kernel_size=1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1, bias=bias)
        if self.fc2.bias is not None:
            with torch.no_grad():
                self.fc2.bias += gate_bias
        if identity:
            for parameter in self.fc2.parameters():
                nn.init.zeros_(parameter)
        self.activation = (IDENTITY_GATE_LAYERS if identity else GATE_LAYERS)[gate]()

    @classmethod
    def from_config(cls, channels: int, se: SEConfig) -> "SqueezeExcitation":
        """The block of `channels` channels with the options of `se`; its position and stages are not read."""
        return cls(
            channels,
            se.reduction,
            squeeze=se.squeeze,
            gate=se.gate,
            bias=se.bias,
            gate_bias=se.gate_bias,
            init=se.init,
        )

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel: (N, C, H, W) to (N, C, 1, 1), or to (N, C, H, W) with the squeeze `none`."""
        return self.activation(self.fc2(F.relu(self.fc1(self.squeeze(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)
