"""What several tests do with networks."""

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn


def randomise_norms(model: nn.Module) -> nn.Module:
    """Norms as after training: with those of a new network, a swapped or missing one would go unseen.

    Their scales are below 1, as a trained network's are: with larger ones a deep random network is chaotic, and
    amplifies the rounding of the last digit.
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
