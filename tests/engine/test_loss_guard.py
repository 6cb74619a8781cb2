"""Losses that are not finite."""

import gc
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine.hooks import CallbackHook
from torch import Tensor

from se_detection.engine.checks import load_config
from se_detection.engine.loss_guard import usual_causes
from se_detection.engine.trainer import Trainer
from se_detection.errors import UserError
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .conftest import SMALL


@pytest.fixture
def build(tiny_flags, se_config, tmp_path):
    """A function that makes a trainer of the tiny data; at some iterations its loss is not finite."""

    def make(*overrides: str, bad: dict[int, float], name: str = "run", resume: bool = False) -> Trainer:
        flags = ["--resume"] if resume else []
        options = [*SMALL, "SEED", "3", "SOLVER.MAX_ITER", "4", "MODEL.RESNETS.NORM", "BN"]
        arguments = [*flags, "--config-file", se_config, *tiny_flags, *options, *overrides]
        args = command_parser(train_command).parse_args([*arguments, "OUTPUT_DIR", str(tmp_path / name)])
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(0)
        trainer = Trainer(load_config(args))
        # No evaluation.
        trainer.test = lambda *_: {}
        trainer.after = {}
        trainer.register_hooks([CallbackHook(after_step=lambda it: it.after.update({it.iter: weights(trainer)}))])
        trainer.resume_or_load(resume)
        forward = trainer.model.forward

        def spoiled(batch):
            losses = forward(batch)
            factor = bad.get(trainer.iter, 1.0)
            return {key: loss * (factor if key == "loss_cls" else 1.0) for key, loss in losses.items()}

        trainer.model.forward = spoiled
        return trainer

    yield make
    # Trainers with hooks of the tests are in reference cycles, and large.
    gc.collect()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in trainer.checkpointer.model.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(("iteration", "saved"), [(2, "model_0000001.pth"), (0, "model_initial.pth")])
def test_it_stops_and_saves_the_state_before(build, tmp_path, iteration, saved) -> None:
    good = build(bad={}, name="good")
    begun = weights(good)
    good.train()
    trainer = build(bad={iteration: float("nan")})
    with pytest.raises(UserError, match=f"^iteration {iteration}: the loss is not finite \\(loss_cls\\) for") as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message
    assert "SOLVER.BASE_LR 0.05 for a batch of 4 images (detectron2's recipes have 0.005)" in message

    # The statistics of its batch norms are those of before.
    assert (tmp_path / "run" / "last_checkpoint").read_text() == saved
    state = torch.load(tmp_path / "run" / saved, weights_only=True)
    before = good.after[iteration - 1] if iteration else begun
    assert any("running_var" in key for key in before)
    assert same(state["model"], before)

    report = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert [entry["iteration"] for entry in report] == [iteration]
    (process,) = report[0]["processes"]
    assert process["losses"]["loss_cls"] == "nan"
    assert len(process["images"]) == 4
    assert all(image.rsplit("/", 1)[-1] in message for image in process["images"])

    # Resuming fails again, on the same images; without the cause it ends as if nothing had happened.
    again = build(bad={iteration: float("inf")}, resume=True)
    with pytest.raises(UserError, match=f"^iteration {iteration}: "):
        again.train()
    both = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert both[1]["processes"][0]["images"] == process["images"]
    assert both[1]["processes"][0]["losses"]["loss_cls"] == "inf"
    fixed = build(bad={}, resume=True)
    fixed.train()
    assert same(fixed.after[3], good.after[3])


def test_the_reason_is_reported(build) -> None:
    """detectron2's printer divides by the number of steps since it last wrote, which is 0 here."""
    with pytest.raises(UserError, match=r"^iteration 1: the loss is not finite"):
        build("TEST.EVAL_PERIOD", "1", bad={1: float("nan")}).train()


def test_it_skips_as_many_steps_in_a_row_as_configured(build, tmp_path, caplog) -> None:
    skip = ["SOLVER.SKIP_NON_FINITE", "1"]
    trainer = build(*skip, bad={1: float("nan"), 3: float("-inf")})
    trainer.train()
    for iteration in (1, 3):
        assert same(trainer.after[iteration], trainer.after[iteration - 1])
    assert not same(trainer.after[2], trainer.after[1])
    assert trainer.guard.skipped == 2
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["trainer"]["skipped"] == [2, 1]

    twice = build(*skip, bad={1: float("nan"), 2: float("nan")}, name="twice")
    with pytest.raises(UserError, match=r"^iteration 2: "):
        twice.train()
    with pytest.raises(UserError, match=r"^iteration 2: "):
        build(*skip, bad={2: float("nan")}, name="twice", resume=True).train()
    # The number of skipped steps is saved: the state before the second is that after the first.
    assert torch.load(tmp_path / "twice" / "model_0000001.pth", weights_only=True)["trainer"]["skipped"] == [1, 1]


def test_a_diverging_training(build, tmp_path) -> None:
    """detectron2's region proposals raise before the loss is computed."""
    trainer = build("SOLVER.BASE_LR", "1e6", "SOLVER.CLIP_GRADIENTS.ENABLED", "False", bad={})
    with pytest.raises(UserError, match=r"^iteration [123]: the loss is not finite \(") as caught:
        trainer.train()
    assert "SOLVER.BASE_LR 1e+06" in str(caught.value)
    report = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert {"nan", "inf"} & set(report[0]["processes"][0]["losses"].values())


def test_detectron2s_error_becomes_an_infinite_loss(build) -> None:
    trainer = build("SOLVER.SKIP_NON_FINITE", "4", bad={})
    model = trainer.checkpointer.model
    forward = model.proposal_generator.forward

    def fail(*args):
        if trainer.iter in (1, 2):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        return forward(*args)

    model.proposal_generator.forward = fail
    trainer.train()
    assert trainer.guard.skipped == 2
    assert same(trainer.after[2], trainer.after[0])
    assert not same(trainer.after[3], trainer.after[2])
    model.eval()
    trainer.iter = 1
    with pytest.raises(FloatingPointError):
        model([{"image": torch.zeros(3, 64, 64)}])


def test_only_causes_that_apply_are_listed() -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.02
    rate, backbone, clipping = usual_causes(cfg, images=4)
    assert "SOLVER.BASE_LR 0.02 for a batch of 4 images (detectron2's recipes have 0.005)" in rate
    assert "MODEL.WEIGHTS is empty" in backbone
    assert "SOLVER.CLIP_GRADIENTS.ENABLED" in clipping
    cfg.MODEL.WEIGHTS = "backbone.pth"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    assert len(usual_causes(cfg, images=4)) == 1
