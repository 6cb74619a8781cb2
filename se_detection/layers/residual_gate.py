"""The one hot operation of an SE-ResNet: gate the residual, add the shortcut, ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def residual_gate(residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
    """`relu(gate * residual + shortcut)`, the `Axpy` and ReLU of the released models.

    Multiply and add are one pass over memory: written apart they cost a second one, which is most of the time that
    SE adds to a ResNet.

    Args:
        residual: (N, C, H, W), the output of the residual branch.
        gate: (N, C, 1, 1), or (N, C, H, W) where nothing was squeezed.
        shortcut: (N, C, H, W).

    Returns:
        (N, C, H, W)
    """
    return F.relu_(torch.addcmul(shortcut, residual, gate))
