import pytest
import torch
from detectron2.engine.hooks import CallbackHook
from torch import Tensor

from se_detection.engine.trainer import Trainer

from .conftest import weights

BACKBONE = "backbone."
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
