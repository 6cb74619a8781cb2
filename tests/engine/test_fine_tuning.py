import gc
import json
import signal
from pathlib import Path

import pytest
import torch
from detectron2.solver import get_default_optimizer_params
from torch import Tensor, nn

from se_detection import model_zoo
from se_detection.engine.checks import load_config
from se_detection.engine.fine_tuning import backbone_of
from se_detection.engine.signals import Interrupted
from se_detection.engine.trainer import Trainer
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .conftest import SMALL


@pytest.fixture
def build(tiny_flags, tmp_path):
    """A function that makes a trainer of four steps whose norms are trained."""

    def make(*overrides: str, name: str = "run", resume: bool = False, config: str = "SE_R_18") -> Trainer:
        options = [*SMALL, "MODEL.RESNETS.NORM", "BN", "SEED", "3", "SOLVER.MAX_ITER", "4", *overrides]
        config_file = model_zoo.get_config_file(f"Toy/faster_rcnn_{config}_FPN")
        flags = [*(["--resume"] if resume else []), "--config-file", config_file, *tiny_flags]
        cfg = load_config(
            command_parser(train_command).parse_args([*flags, *options, "OUTPUT_DIR", str(tmp_path / name)])
        )
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        return trainer

    yield make
    gc.collect()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def before_steps(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Trains, and gives the model's state before each step and after the last."""
    states: list[dict[str, Tensor]] = []
    run_step = trainer.run_step

    def recorded() -> None:
        states.append(state(trainer.checkpointer.model))
        run_step()

    trainer.run_step = recorded
    trainer.train()
    return [*states, state(trainer.checkpointer.model)]


def changed(before: dict[str, Tensor], after: dict[str, Tensor], part: str) -> set[str]:
    return {key for key in before if key.startswith(part) and not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("config", ["R_18", "SE_R_18"])
def test_the_backbone_is_frozen_and_unfrozen(build, config) -> None:
    """With an evaluation in between, which sets the model back to training mode."""
    trainer = build("SOLVER.BACKBONE_FREEZE_ITERS", "2", "TEST.EVAL_PERIOD", "1", config=config)
    states = before_steps(trainer)
    backbone, others = "backbone.bottom_up.", "roi_heads."
    for number in (0, 1):
        assert not changed(states[number], states[number + 1], backbone)
        assert changed(states[number], states[number + 1], others)
    learnt = {
        key for key in states[0] if key.startswith(backbone) and not key.startswith(f"{backbone}stem.conv1.norm.num")
    }
    for number in (2, 3):
        # A gate's bias may have no gradient where its ReLU is shut.
        assert len(changed(states[number], states[number + 1], backbone)) > 0.9 * len(learnt)


def test_stages_below_freeze_at_stay_frozen(build) -> None:
    trainer = build("SOLVER.BACKBONE_FREEZE_ITERS", "1", "MODEL.BACKBONE.FREEZE_AT", "2")
    states = before_steps(trainer)
    found = changed(states[0], states[-1], "backbone.bottom_up.")
    assert found
    assert not [key for key in found if ".stem." in key or ".res2." in key]


@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_stopped_fine_tuning_resumes_exactly(build, stop_at) -> None:
    options = ("SOLVER.BACKBONE_FREEZE_ITERS", "2", "SOLVER.BACKBONE_MULTIPLIER", "0.1")
    whole = build(*options, name="whole")
    whole.train()
    stopped = build(*options, name="stopped")
    run_step = stopped.run_step

    def stopping() -> None:
        stopped.stop.received = signal.SIGTERM if stopped.iter == stop_at else 0
        run_step()

    stopped.run_step = stopping
    with pytest.raises(Interrupted):
        stopped.train()
    resumed = build(*options, name="stopped", resume=True)
    resumed.train()
    torch.testing.assert_close(state(resumed.checkpointer.model), state(whole.checkpointer.model), rtol=0, atol=0)


@pytest.mark.parametrize("factor", [0.1, 0.0])
def test_learning_rates_are_those_of_detectron2s_factor(build, factor) -> None:
    """detectron2 has the factor only as an argument, not in the config."""
    trainer = build("SOLVER.BACKBONE_MULTIPLIER", str(factor), "SOLVER.BIAS_LR_FACTOR", "2.0")
    model, solver = trainer.checkpointer.model, trainer.cfg.SOLVER
    theirs = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=2.0,
        lr_factor_func=lambda name: factor if name.startswith("backbone.bottom_up.") else 1.0,
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


def test_two_processes_unfreeze_the_backbone_together(run_tool, tiny_flags, tmp_path) -> None:
    """DDP registers the trained parameters when it wraps a model: others would differ between processes."""
    config = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
    options = [
        *SMALL,
        "SEED",
        3,
        "SOLVER.MAX_ITER",
        3,
        "SOLVER.BACKBONE_FREEZE_ITERS",
        1,
        "OUTPUT_DIR",
        tmp_path / "run",
    ]
    script = Path(__file__).with_name("recorded_train_net.py")
    flags = ["--config-file", config, "--num-gpus", 2, "--dist-url", "auto", *tiny_flags]
    done = run_tool(script, *flags, *options, RECORD=str(tmp_path))
    assert done.returncode == 0, done.stderr
    steps = [[json.loads(line) for line in (tmp_path / f"{rank}.jsonl").open()] for rank in (0, 1)]
    weights = [[step["weights"] for step in lines if "weights" in step] for lines in steps]
    assert len(weights[0]) == 3
    assert weights[0] == weights[1]
