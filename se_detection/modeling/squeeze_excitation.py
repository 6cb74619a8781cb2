"""The squeeze-and-excitation block (Hu et al., arXiv 1709.01507, Sec. 3 and Fig. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AvgMaxSqueeze(nn.Module):
    """Global average and global maximum, concatenated: (N, C, H, W) to (N, 2C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], dim=1)


SQUEEZES: dict[str, type[nn.Module]] = {
    "avg": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
    "avgmax": AvgMaxSqueeze,
    "none": nn.Identity,
}
GATES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "hardsigmoid": nn.Hardsigmoid,
}


class SqueezeExcitation(nn.Module):
    """Squeeze (global average), FC, ReLU, FC, gate (sigmoid), and scale the input's channels by it.

    Shape: (N, C, H, W) to (N, C, H, W).

    Args:
        channels: C.
        reduction: the paper's r; the excitation has C // r hidden channels (Sec. 3.2).
        squeeze: `avg`, `max` (Table 11), `avgmax` (both, concatenated), or `none`: the paper's NoSqueeze (Table 16),
            where the two layers work on every position of the map.
        gate: `sigmoid`, `tanh`, `relu` (Table 12) or `hardsigmoid`.
        bias: whether the two layers have biases.
        gate_bias: added to the second bias as it is initialised; 4 opens sigmoid gates to 0.98, where 0 leaves them
            near 0.5.

    Raises:
        ValueError: C // r is 0, or `squeeze` or `gate` is unknown.
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
            raise ValueError(
                f"reduction ratio {reduction} leaves nothing of {channels} channels; use at most {channels}"
            )
        if squeeze not in SQUEEZES or gate not in GATES:
            raise ValueError(f"squeeze={squeeze!r}, gate={gate!r}: choose from {list(SQUEEZES)} and {list(GATES)}")
        self.squeeze = SQUEEZES[squeeze](1) if squeeze in ("avg", "max") else SQUEEZES[squeeze]()
        squeezed = 2 * channels if squeeze == "avgmax" else channels
        self.fc1 = nn.Conv2d(squeezed, hidden, kernel_size=1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1, bias=bias)
        if self.fc2.bias is not None:
            with torch.no_grad():
                self.fc2.bias += gate_bias
        self.activation = GATES[gate]()

    def gate(self, x: Tensor) -> Tensor:
        """The factor of each channel: (N, C, H, W) to (N, C, 1, 1), or to (N, C, H, W) where nothing is squeezed."""
        return self.activation(self.fc2(F.relu(self.fc1(self.squeeze(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)
