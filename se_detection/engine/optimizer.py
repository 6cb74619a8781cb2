"""The optimizer of a config: SGD or AdamW, a lower learning rate for the backbone, clipping of gradients."""

import re
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import _generate_optimizer_class_with_gradient_clipping, maybe_add_gradient_clipping
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.optim import Optimizer

from ..config.se_config import check_choice
from ..errors import UserError
from ..modeling.insert_se import INSERTED_SE
from ..modeling.partial_load import identity_gates
from .fine_tuning import backbone_of

OPTIMIZERS = ("SGD", "ADAMW")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """detectron2's optimizer, with AdamW (`SOLVER.OPTIMIZER`, `SOLVER.BETAS`) and `SOLVER.BACKBONE_MULTIPLIER`.

    AdamW has the parameter groups of detectron2's SGD: `BASE_LR`, `BIAS_LR_FACTOR`, `WEIGHT_DECAY` and, for norms and
    biases, `WEIGHT_DECAY_NORM` and `WEIGHT_DECAY_BIAS`. `CLIP_GRADIENTS` is for both. SE blocks that were added to a
    pre-trained backbone (`MODEL.TIMM.INSERT_SE`, or gates that start as the identity) are new, and keep `BASE_LR`.
    """
    solver = cfg.SOLVER
    optimizer: Optimizer = _build_adamw(cfg, model) if solver.OPTIMIZER == "ADAMW" else build_sgd(cfg, model)
    if solver.BACKBONE_MULTIPLIER != 1:
        scale_rate(optimizer, _pretrained(backbone_of(model), cfg), solver.BACKBONE_MULTIPLIER)
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "value":
        clip_values(optimizer, solver.CLIP_GRADIENTS.CLIP_VALUE)
    return optimizer


def check_optimizer(cfg: CfgNode) -> None:
    """Checks `SOLVER.OPTIMIZER` and `SOLVER.BETAS`.

    Raises:
        UserError: the optimizer is unknown, or the betas are not two numbers from 0 to below 1.
    """
    check_choice("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, OPTIMIZERS)
    betas = cfg.SOLVER.BETAS
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise UserError(
            "config.bad_value",
            f"SOLVER.BETAS: {list(betas)} must be two numbers from 0 to below 1, such as (0.9, 0.999)",
        )


def _build_adamw(cfg: CfgNode, model: nn.Module) -> Optimizer:
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    adamw = torch.optim.AdamW(groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), weight_decay=solver.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, adamw)


def _pretrained(backbone: nn.Module, cfg: CfgNode) -> list[nn.Parameter]:
    """A backbone's parameters without those of SE blocks that were added to it: weights files have none of them."""
    added = set(identity_gates(backbone))
    return [
        parameter
        for name, parameter in backbone.named_parameters()
        if name not in added and not (cfg.MODEL.TIMM.INSERT_SE and re.search(INSERTED_SE, name))
    ]


def scale_rate(optimizer: Optimizer, parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies the learning rate of some parameters in a new optimizer."""
    scaled = set(map(id, parameters))
    groups = []
    for group in optimizer.param_groups:
        for chosen, rate in ((False, group["lr"]), (True, group["lr"] * factor)):
            members = [item for item in group["params"] if (id(item) in scaled) == chosen]
            if members:
                groups.append({**group, "params": members, "lr": rate})
    optimizer.param_groups = groups


def clip_values(optimizer: Optimizer, limit: float) -> None:
    """Replaces detectron2's clipping by value, in which torch fails on a parameter without a gradient.

    A frozen backbone has no gradients, and after a skipped step, nothing has.
    """

    def clip(parameters: Iterable[nn.Parameter]) -> None:
        if trained := [item for item in parameters if item.grad is not None]:
            clip_grad_value_(trained, limit)

    plain = type(optimizer).__base__
    optimizer.__class__ = _generate_optimizer_class_with_gradient_clipping(plain, global_clipper=clip)
