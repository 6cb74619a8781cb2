"""`--resume` with a checkpoint that no training with this config has written."""

from typing import Any

import pytest
import torch

from se_detection import UserError, model_zoo
from se_detection.checkpoint import checkpointer
from se_detection.checkpoint.read_weights import read_checkpoint
from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .conftest import SMALL


@pytest.fixture(scope="module")
def resumed(module_path, tiny) -> tuple[Trainer, dict[str, Any]]:
    """A trainer, and the checkpoint of its first step."""
    data = []
    for split in ("train", "val"):
        data += [f"--{split}-json", str(tiny / "annotations" / f"{split}.json"), f"--{split}-images", str(tiny / split)]
    config = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
    words = [*SMALL, "SEED", "3", "SOLVER.EMA_DECAY", "0.9", "OUTPUT_DIR", str(module_path)]
    trainer = Trainer(load_config(command_parser(train_command).parse_args(["--config-file", config, *data, *words])))
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.checkpointer.save("model_0000000", iteration=0)
    return trainer, read_checkpoint(module_path / "model_0000000.pth")


def containers(content: Any) -> Any:
    """A copy with the same tensors."""
    if isinstance(content, dict):
        return {key: containers(value) for key, value in content.items()}
    return [containers(value) for value in content] if isinstance(content, list | tuple) else content


def put(state: Any, path: str, value: object) -> None:
    *parents, last = path.split("/")
    for key in parents:
        state = state[int(key) if key.isdecimal() else key]
    state[int(last) if last.isdecimal() else last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer", 5),
        ("trainer", []),
        ("trainer", {}),
        ("trainer/iteration", "3"),
        ("trainer/iteration", float("nan")),
        ("trainer/iteration", 10**30),
        ("trainer/hooks", 7),
        ("trainer/hooks/LRScheduler", torch.ones(3)),
        ("trainer/hooks/LRScheduler/base_lrs", "high"),
        ("trainer/hooks/LRScheduler/last_epoch", [1]),
        ("trainer/hooks/MovingAverage/trained", {}),
        ("trainer/hooks/MovingAverage/trained", None),
        ("trainer/_trainer", None),
        ("trainer/_trainer/optimizer", 3),
        ("trainer/_trainer/optimizer/param_groups", []),
        ("trainer/_trainer/optimizer/param_groups/0/lr", float("nan")),
        ("trainer/_trainer/optimizer/param_groups/0/lr", "0.1"),
        ("trainer/_trainer/optimizer/param_groups/0/momentum", None),
        ("trainer/_trainer/optimizer/state/0/momentum_buffer", torch.ones(7, 7)),
        ("trainer/_trainer/optimizer/state/0/momentum_buffer", torch.ones(1).expand(10**9)),
        ("trainer/position/seed", {}),
        ("trainer/position/phases", [[0, 1]]),
        ("trainer/position/phases", [["0", 1, 1]]),
        ("trainer/position/data", {"x": 1}),
        ("trainer/skipped", 1),
        ("trainer/skipped", ["a", "b"]),
        ("trainer/config", 4),
        ("trainer/config/SEED", {1: 2}),
        ("assumptions", 3),
        ("assumptions/depth", "18"),
        ("assumptions/pixel_mean", [None, 1, 2]),
        ("assumptions/se_reduction", 16),
        ("model", {}),
        ("model/backbone.bottom_up.res2.0.conv1.weight", torch.ones(64, 64, 3, 3, dtype=torch.int8)),
        ("model/proposal_generator.rpn_head.conv.weight", torch.ones(2)),
    ],
)
def test_a_foreign_state_is_refused_in_one_line(resumed, monkeypatch, path, value) -> None:
    trainer, content = resumed
    changed = containers(content)
    put(changed, path, value)
    monkeypatch.setattr(checkpointer, "read_checkpoint", lambda path: changed)
    with pytest.raises(UserError) as caught:
        trainer.resume_or_load(True)
    assert str(caught.value).isprintable()


def test_its_own_checkpoint_is_resumed(resumed) -> None:
    trainer, _ = resumed
    trainer.resume_or_load(True)
    assert trainer.start_iter == 1
