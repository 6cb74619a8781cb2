from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import CallbackHook
from detectron2.solver import get_default_optimizer_params
from torch import Tensor, nn

from se_detection.engine.fine_tuning import backbone_of
from se_detection.engine.trainer import Trainer

from .conftest import same, weights

BACKBONE = "backbone.bottom_up."
CLIPPED = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value")


def before_steps(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Trains, and gives the model's state before each step and after the last."""
    states: list[dict[str, Tensor]] = []
    trainer.register_hooks([CallbackHook(before_step=lambda _: states.append(weights(trainer)))])
    trainer.train()
    return [*states, weights(trainer)]


def changed(before: dict[str, Tensor], after: dict[str, Tensor], part: str) -> set[str]:
    return {key for key in before if key.startswith(part) and not torch.equal(before[key], after[key])}


@pytest.mark.slow
def test_the_backbone_is_frozen_and_unfrozen(build) -> None:
    """With an evaluation in between, which sets the model back to training mode; FREEZE_AT's stages stay frozen."""
    options = ["SOLVER.BACKBONE_FREEZE_ITERS", 2, "MODEL.BACKBONE.FREEZE_AT", 2]
    trainer = build("frozen", *options, *CLIPPED, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3)
    states = before_steps(trainer)
    for number in (0, 1):
        assert not changed(states[number], states[number + 1], BACKBONE)
        assert changed(states[number], states[number + 1], "roi_heads.")
    found = changed(states[2], states[3], BACKBONE)
    assert not [key for key in found if ".stem." in key or ".res2." in key]
    learnt = {key for key in states[0] if key.startswith(BACKBONE) and ".stem." not in key and ".res2." not in key}
    # A gate's bias may have no gradient where its ReLU is shut.
    assert len(found) > 0.9 * len(learnt)


def test_values_are_clipped_as_by_detectron2() -> None:
    """And parameters without a gradient, on which detectron2's clipping fails, stay as they are."""
    cfg = get_cfg()
    cfg.merge_from_list([*CLIPPED, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5])
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    theirs_optimizer, optimizer = (
        kind.build_optimizer(cfg, model) for kind, model in ((DefaultTrainer, theirs), (Trainer, ours))
    )
    for model, chosen in ((theirs, theirs_optimizer), (ours, optimizer)):
        model.weight.grad, model.bias.grad = torch.tensor([[0.1, 2.0, -3.0]] * 2), torch.tensor([0.4, -9.0])
        chosen.step()
    assert same(ours.state_dict(), theirs.state_dict())
    for parameter in (ours.bias, ours.weight):
        parameter.grad, before = None, parameter.clone()
        optimizer.step()
        assert torch.equal(parameter, before)


def test_learning_rates_are_those_of_detectron2s_factor(build) -> None:
    """detectron2 has the factor only as an argument, not in the config."""
    factor = 0.1
    trainer = build("rates", "SOLVER.BACKBONE_MULTIPLIER", factor, "SOLVER.BIAS_LR_FACTOR", 2.0)
    model, solver = trainer.checkpointer.model, trainer.cfg.SOLVER
    theirs = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=2.0,
        lr_factor_func=lambda name: factor if name.startswith(BACKBONE) else 1.0,
    )
    expected = {id(item): group["lr"] for group in theirs for item in group["params"]}
    # detectron2 ignores the factor for biases if they have their own.
    backbone = set(map(id, backbone_of(model).parameters()))
    expected |= {
        id(item): 2 * solver.BASE_LR * (factor if id(item) in backbone else 1)
        for name, item in model.named_parameters()
        if name.endswith("bias")
    }
    found = {id(item): group["initial_lr"] for group in trainer.optimizer.param_groups for item in group["params"]}
    assert found == pytest.approx(expected)
    assert not Path(trainer.cfg.OUTPUT_DIR).exists()
