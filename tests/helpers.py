"""Helpers for tests of networks."""

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn


def randomize_norms(model: nn.Module) -> nn.Module:
    """Gives norms random values, as after training; with initial values, tests would not notice a swapped norm.

    Scales are below 1, as in trained networks. With larger ones, a deep random network amplifies rounding errors.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.data.uniform_(0.2, 0.6)
            module.running_var.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-20)).item()
