"""How large a detector is and how much it computes."""

import torch
from detectron2.modeling import Backbone
from fvcore.nn import FlopCountAnalysis
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """The number of a model's parameters, frozen ones too; buffers (such as FrozenBN's) are no parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def backbone_gflops(backbone: Backbone, height: int, width: int) -> float:
    """Billions of multiply-adds of a detector's backbone (trunk and FPN) for one picture.

    fvcore counts the convolutions, linear layers and norms; additions, activations and pools are left out, as in the
    paper's figures. The size is rounded up to what the backbone divides by.
    """
    step = max(backbone.size_divisibility, 1)
    size = [-(-length // step) * step for length in (height, width)]
    device = next(backbone.parameters()).device
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        counter = FlopCountAnalysis(backbone, torch.zeros(1, 3, *size, device=device))
        total = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    backbone.train(training)
    return total / 1e9
