"""Optimizers against torch's, step for step."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.solver import get_default_optimizer_params
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from se_detection.config.se_config import SEConfig
from se_detection.engine.checks import check_settings
from se_detection.engine.optimizer import build_optimizer
from se_detection.engine.resume import check_fixed_values, fixed_values
from se_detection.modeling.insert_se import insert_se

from ..helpers import raises
from .conftest import same

BACKBONE = "backbone.bottom_up."
ADAMW = ("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.BETAS", (0.8, 0.95))
CLIPPED = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")


def config(*words: object):
    cfg = get_cfg()
    cfg.merge_from_list(list(words))
    return cfg


class Small(nn.Module):
    """A backbone with norms of two kinds, and a head; one parameter is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.backbone[3].bias.requires_grad = False
        self.head = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4, before_step=lambda model: None) -> None:
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            # As a schedule does.
            group["lr"] *= 0.5 if step == 2 else 1
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6, generator=generator)).backward()
        before_step(model)
        optimizer.step()


def pair() -> tuple[Small, Small]:
    torch.manual_seed(0)
    ours, theirs = Small(), Small()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def torchs_adamw(model: Small, *, backbone: float = 1.0, bias: float = 1.0) -> torch.optim.AdamW:
    """AdamW with a group for each parameter: no decay of norms, 0.1 for biases, other rates for backbone and biases."""
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_norm, is_bias = name.startswith(("backbone.1.", "head.0.")), name.endswith("bias")
            rate = 0.01 * (backbone if name.startswith("backbone.") else 1) * (bias if is_bias else 1)
            groups.append(
                {"params": [parameter], "lr": rate, "weight_decay": 0.1 if is_bias else 0.0 if is_norm else 0.5}
            )
    return torch.optim.AdamW(groups, betas=(0.8, 0.95))


def clip_each(model: nn.Module) -> None:
    """detectron2 clips the norm of each parameter alone."""
    for parameter in model.parameters():
        clip_grad_norm_(parameter, 0.01)


def clip_values(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.clamp_(-0.002, 0.002)


@pytest.mark.parametrize("init", ["identity", "default"])
def test_added_se_has_the_rate_of_new_layers(init) -> None:
    model = Small()
    insert_se(model.backbone, SEConfig(reduction=2, init=init), sites=["0", "1"])
    # Without the key, gates that start as the identity are new, too.
    cfg = config("SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.BASE_LR", 2.0, "MODEL.TIMM.INSERT_SE", init == "default")
    optimizer = build_optimizer(cfg, model)
    rates = {id(item): group["lr"] for group in optimizer.param_groups for item in group["params"]}
    found = {name: rates[id(item)] for name, item in model.named_parameters() if item.requires_grad}
    assert {name for name, rate in found.items() if rate == pytest.approx(0.2)} == {
        *("backbone.0.weight", "backbone.0.bias", "backbone.1.norm.weight", "backbone.1.norm.bias", "backbone.3.weight")
    }
    assert sum(rate == 2 for rate in found.values()) == len(found) - 5 == 2 * 4 + 4


@pytest.mark.parametrize(
    ("words", "before_step"),
    [
        ((), lambda model: None),
        (("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"), clip_each),
        (CLIPPED, clip_values),
    ],
    ids=["unclipped", "norm", "value"],
)
def test_adamw_is_torchs(words, before_step) -> None:
    limit = 0.01 if "norm" in words else 0.002
    rates = ("SOLVER.BACKBONE_MULTIPLIER", 0.1, "SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.1)
    cfg = config(*ADAMW, *rates, *words, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", limit)
    ours, theirs = pair()
    before = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    train(ours, build_optimizer(cfg, ours))
    train(theirs, torchs_adamw(theirs, backbone=0.1, bias=2.0), before_step=before_step)
    assert same(ours.state_dict(), theirs.state_dict())
    moved = {key for key, tensor in ours.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == before.keys() - {"backbone.3.bias"}


def test_sgd_is_detectron2s() -> None:
    cfg = config("SOLVER.BASE_LR", 0.1, "SOLVER.NESTEROV", True)
    ours, theirs = pair()
    train(ours, build_optimizer(cfg, ours))
    train(theirs, DefaultTrainer.build_optimizer(cfg, theirs))
    assert same(ours.state_dict(), theirs.state_dict())


def test_a_saved_state_continues_exactly() -> None:
    cfg = config(*ADAMW, *CLIPPED)
    whole, stopped = pair()
    train(whole, build_optimizer(cfg, whole), steps=6)
    first = build_optimizer(cfg, stopped)
    train(stopped, first, steps=4)
    rest = build_optimizer(cfg, stopped)
    rest.load_state_dict(first.state_dict())
    # The other two batches.
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        batch = torch.randn(2, 3, 6, 6, generator=generator)
        if number >= 4:
            rest.zero_grad()
            stopped(batch).backward()
            rest.step()
    assert same(stopped.state_dict(), whole.state_dict())


def test_a_step_without_gradients_changes_nothing() -> None:
    """After a skipped step, or of a backbone that is frozen at first: without decay, too."""
    model = Small()
    optimizer = build_optimizer(config(*ADAMW, *CLIPPED), model)
    train(model, optimizer)
    optimizer.zero_grad(set_to_none=True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer.step()
    assert same(model.state_dict(), before)


def test_values_are_clipped_as_by_detectron2() -> None:
    """And parameters without a gradient, on which detectron2's clipping fails, stay as they are."""
    cfg = config(*CLIPPED, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    theirs_optimizer, optimizer = DefaultTrainer.build_optimizer(cfg, theirs), build_optimizer(cfg, ours)
    for model, chosen in ((theirs, theirs_optimizer), (ours, optimizer)):
        model.weight.grad, model.bias.grad = torch.tensor([[0.1, 2.0, -3.0]] * 2), torch.tensor([0.4, -9.0])
        chosen.step()
    assert same(ours.state_dict(), theirs.state_dict())
    for parameter in (ours.bias, ours.weight):
        parameter.grad, before = None, parameter.clone()
        optimizer.step()
        assert torch.equal(parameter, before)


def test_learning_rates_are_those_of_detectron2s_factor(build) -> None:
    """detectron2 has the factor only as an argument, not in the config. The gates start as the identity."""
    factor = 0.1

    def is_scaled(name: str) -> bool:
        return name.startswith("backbone.") and ".se." not in name

    trainer = build("rates", "SOLVER.BACKBONE_MULTIPLIER", factor, "SOLVER.BIAS_LR_FACTOR", 2.0)
    model, solver = trainer.checkpointer.model, trainer.cfg.SOLVER
    theirs = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=2.0,
        lr_factor_func=lambda name: factor if is_scaled(name) else 1.0,
    )
    expected = {id(item): group["lr"] for group in theirs for item in group["params"]}
    # detectron2 ignores the factor for biases if they have their own.
    expected |= {
        id(item): 2 * solver.BASE_LR * (factor if is_scaled(name) else 1)
        for name, item in model.named_parameters()
        if name.endswith("bias")
    }
    found = {id(item): group["initial_lr"] for group in trainer.optimizer.param_groups for item in group["params"]}
    assert found == pytest.approx(expected)
    assert not Path(trainer.cfg.OUTPUT_DIR).exists()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("SOLVER.OPTIMIZER", "Adam"), "config.unknown_choice", "SOLVER.OPTIMIZER: 'Adam' is not one of SGD, ADAMW"),
        (("SOLVER.BETAS", [0.9]), "config.bad_value", "SOLVER.BETAS: [0.9]"),
        (("SOLVER.BETAS", [0.9, 1.0]), "config.bad_value", "SOLVER.BETAS: [0.9, 1.0]"),
    ],
)
def test_unusable_settings_are_refused(words, code, named) -> None:
    with raises(code, named):
        check_settings(config(*words), processes=1)


def test_a_run_keeps_its_optimizer() -> None:
    kept = fixed_values(config(*ADAMW))
    check_fixed_values(config(*ADAMW), kept)
    for key, other in (("SOLVER.OPTIMIZER", "SGD"), ("SOLVER.BETAS", (0.9, 0.999))):
        with raises("train.fixed_value", key):
            check_fixed_values(config(*ADAMW, key, other), kept)
