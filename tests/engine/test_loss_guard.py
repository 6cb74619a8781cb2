"""Losses that are not finite."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine.hooks import CallbackHook
from detectron2.structures import Boxes
from detectron2.utils import comm

from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.engine import loss_guard
from se_detection.engine.hooks import Checkpoints
from se_detection.engine.loss_guard import gather_normalizers, get_normalizer, restore_normalizer, usual_causes
from se_detection.engine.trainer import Trainer
from se_detection.errors import UserError

from ..helpers import raises
from .conftest import same, weights


@pytest.fixture
def spoiled(build) -> Callable[..., Trainer]:
    """A function that makes a trainer without evaluation whose loss is not finite at some iterations."""

    def make(name: str, *words: object, bad: dict[int, float], resume: bool = False) -> Trainer:
        trainer = build(name, *words, resume=resume)
        trainer.test = lambda *_: {}
        trainer.after = {}
        trainer.register_hooks([CallbackHook(after_step=lambda it: it.after.update({it.iter: weights(trainer)}))])
        forward = trainer.model.forward

        def multiplied(batch):
            losses = forward(batch)
            factor = bad.get(trainer.iter, 1.0)
            return {key: loss * (factor if key == "loss_cls" else 1.0) for key, loss in losses.items()}

        trainer.model.forward = multiplied
        return trainer

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("iteration", "saved"),
    [(2, "model_0000001.pth"), (0, "model_initial.pth")],
)
def test_it_stops_and_saves_the_state_before(spoiled, module_path, iteration, saved) -> None:
    good = spoiled(f"good{iteration}", bad={})
    begun = weights(good)
    good.train()
    name = f"bad{iteration}"
    trainer = spoiled(name, "TEST.EVAL_PERIOD", "1", bad={iteration: float("nan")})
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert caught.value.code == "train.non_finite_loss"
    assert message.startswith(f"iteration {iteration}: the loss is not finite (loss_cls) for")
    assert "SOLVER.BASE_LR 0.01 for a batch of 2 images (usual for SGD: 0.0025)" in message

    # The statistics of its batch norms are those of before.
    assert (module_path / name / "last_checkpoint").read_text() == saved
    state = torch.load(module_path / name / saved, weights_only=True)
    assert state["trainer"]["iteration"] == iteration - 1
    before = good.after[iteration - 1] if iteration else begun
    assert any("running_var" in key for key in before)
    assert same(state["model"], before)

    report = json.loads((module_path / name / "non_finite.json").read_text())
    # The cosine schedule of four steps.
    rate = 0.01 * (1 + math.cos(math.pi * iteration / 4)) / 2
    assert [(entry["iteration"], entry["learning_rate"]) for entry in report] == [(iteration, pytest.approx(rate))]
    (process,) = report[0]["processes"]
    assert process["losses"]["loss_cls"] == "nan"
    assert process["losses"]["loss_rpn_cls"] > 0
    assert len(process["images"]) == 2
    assert all(Path(image).name in message for image in process["images"])

    # Resuming fails again, on the same images; without the cause it ends as if nothing had happened.
    with raises("train.non_finite_loss", f"iteration {iteration}: "):
        spoiled(name, bad={iteration: float("inf")}, resume=True).train()
    both = json.loads((module_path / name / "non_finite.json").read_text())
    assert both[1]["processes"][0]["images"] == process["images"]
    assert both[1]["processes"][0]["losses"]["loss_cls"] == "inf"
    fixed = spoiled(name, bad={}, resume=True)
    fixed.train()
    assert same(fixed.after[3], good.after[3])


@pytest.mark.slow
def test_it_skips_as_many_steps_in_a_row_as_configured(spoiled, module_path) -> None:
    # Clipping by value must not fail where a step has no gradients.
    clipped = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"]
    skip = ["SOLVER.SKIP_NON_FINITE", "1", *clipped]
    trainer = spoiled("skip", *skip, bad={1: float("nan"), 3: float("-inf")})
    trainer.train()
    for iteration in (1, 3):
        assert same(trainer.after[iteration], trainer.after[iteration - 1])
    assert not same(trainer.after[2], trainer.after[1])
    assert torch.load(module_path / "skip" / "model_final.pth", weights_only=True)["trainer"]["skipped"] == [2, 1]

    with raises("train.non_finite_loss", "iteration 2: "):
        spoiled("twice", *skip, bad={1: float("nan"), 2: float("nan")}).train()
    with raises("train.non_finite_loss", "iteration 2: "):
        spoiled("twice", *skip, bad={2: float("nan")}, resume=True).train()
    # The number of skipped steps is saved: the state before the second is that after the first.
    assert torch.load(module_path / "twice" / "model_0000001.pth", weights_only=True)["trainer"]["skipped"] == [1, 1]


@pytest.mark.slow
def test_a_diverging_training(spoiled, module_path) -> None:
    """detectron2's region proposals raise before the loss is computed."""
    trainer = spoiled("diverging", "SOLVER.BASE_LR", "1e6", bad={})
    with raises("train.non_finite_loss", "the loss is not finite (", "SOLVER.BASE_LR 1e+06", "CLIP_GRADIENTS"):
        trainer.train()
    report = json.loads((module_path / "diverging" / "non_finite.json").read_text())
    assert {"nan", "inf"} & set(report[0]["processes"][0]["losses"].values())


@pytest.mark.slow
def test_detectron2s_error_becomes_an_infinite_loss(spoiled) -> None:
    trainer = spoiled("raised", "SOLVER.SKIP_NON_FINITE", "4", bad={})
    model = trainer.checkpointer.model
    forward = model.proposal_generator.forward

    def fail(*args):
        if trainer.iter == 1:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        if trainer.iter == 2:
            # As a stage of Cascade R-CNN.
            Boxes(torch.full((1, 4), float("nan"))).clip((1, 1))
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


def test_weights_that_were_not_finite_before_are_not_saved(spoiled, module_path) -> None:
    trainer = spoiled("before", bad={0: float("nan")})
    next(trainer.checkpointer.model.parameters()).data.fill_(float("nan"))
    with raises("train.non_finite_loss", "the state before it is not saved"):
        trainer.train()
    assert not list((module_path / "before").glob("*.pth"))


def test_each_process_gets_its_normalizer_back(monkeypatch) -> None:
    """Another number of processes share the images, and so the objects that it counts."""
    model = torch.nn.Module()
    for gathered, processes, expected in (
        ([80.0, 110.0], 2, [80.0, 110.0]),
        ([80.0, 110.0], 1, [190.0]),
        ([100.0], 4, [25.0] * 4),
        ([None], 1, [None]),
        ([], 2, [None, None]),
    ):
        found = []
        for rank in range(processes):
            group = SimpleNamespace(get_world_size=lambda n=processes: n, get_rank=lambda rank=rank: rank)
            monkeypatch.setattr(loss_guard, "comm", group)
            model.loss_normalizer = 1.0
            restore_normalizer(model, gathered)
            found.append(get_normalizer(model))
        assert found == expected


def test_every_process_takes_part_in_saving(monkeypatch, tmp_path) -> None:
    """The normalizers are gathered, for which the main process waits for the others."""
    model = torch.nn.Linear(1, 1)
    model.loss_normalizer = 80.0
    monkeypatch.setattr(comm, "all_gather", lambda value: [value, 110.0])
    gathered = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        state = SimpleNamespace(state_dict=lambda: gathered.append(gather_normalizers(model)))
        saver = StrictCheckpointer(model, str(tmp_path / str(rank)), state=state)
        checkpoints = Checkpoints(saver, period=1, keep=0, stop=None)
        checkpoints.trainer = SimpleNamespace(iter=4, max_iter=9)
        (tmp_path / str(rank)).mkdir()
        checkpoints.save()
    assert gathered == [[80.0, 110.0]] * 2
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.pth")] == ["0/model_0000004.pth"]


def test_only_causes_that_apply_are_listed() -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.02
    rate, backbone, clipping = usual_causes(cfg, images=4)
    assert "SOLVER.BASE_LR 0.02 for a batch of 4 images (usual for SGD: 0.005)" in rate
    assert "MODEL.WEIGHTS is empty" in backbone
    assert "SOLVER.CLIP_GRADIENTS.ENABLED" in clipping
    cfg.MODEL.WEIGHTS = "backbone.pth"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    assert len(usual_causes(cfg, images=4)) == 1
