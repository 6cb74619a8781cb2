"""How large a network is and how much it computes."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from fvcore.nn import FlopCountAnalysis
from torch import nn

# fvcore's names of what convolutions and linear layers run; it counts norms and resizing too, which the paper doesn't.
OPERATORS = ("conv", "linear", "addmm")


def count_parameters(model: nn.Module) -> int:
    """The number of a model's parameters, frozen ones too; buffers (such as FrozenBN's) are no parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, *inputs: Any) -> Mapping[str, int]:
    """The multiply-adds of convolutions and linear layers in each module that one forward call runs.

    Args:
        model: counted in evaluation mode, and left in the mode that it was in.
        inputs: what its `forward` takes.

    Returns:
        A count for each module's name, that of its children included; the whole model's is at `""`. A module that
        isn't called, or called otherwise than by its `forward`, has 0.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        counter = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = counter.by_module_and_operator()
    model.train(training)
    counts = {name: int(sum(operators[key] for key in OPERATORS)) for name, operators in by_module.items()}
    return defaultdict(int, counts)


def picture_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width in pixels of a 4:3 picture as a config's detector is tested on it."""
    height = cfg.INPUT.MIN_SIZE_TEST
    return height, min(round(height * 4 / 3), cfg.INPUT.MAX_SIZE_TEST)


def padded_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels, rounded up to what the backbone divides by, as detectron2 pads a picture."""
    step = max(backbone.size_divisibility, 1)
    return -(-height // step) * step, -(-width // step) * step


def backbone_gflops(backbone: Backbone, height: int, width: int) -> float:
    """Billions of multiply-adds of a detector's backbone (trunk and FPN) for one picture, padded as detectron2 does.

    Convolutions and linear layers are counted, as in the paper's figures.
    """
    device = next(backbone.parameters()).device
    image = torch.zeros(1, 3, *padded_size(backbone, height, width), device=device)
    return multiply_adds(backbone, image)[""] / 1e9
