"""The detector of a run folder, as tools/train_net.py leaves it, and the images that it is looked at with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.assumptions import WeightsAssumptions
from ..checkpoint.checkpointer import StrictCheckpointer
from ..config.buildable import check_backbone
from ..config.read_config import read_config
from ..errors import UserError
from ..modeling.padding import ignore_padding_in_heads
from .checkpoints import newest_checkpoint


@dataclass(frozen=True)
class TrainedRun:
    """A run's config, its detector in evaluation mode on the device at hand, and the checkpoint that this is."""

    folder: Path
    cfg: CfgNode
    model: nn.Module
    weights: Path


def read_run_config(folder: Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The config that a run was trained with, for the device at hand, with overrides (`KEY VALUE ...`).

    Raises:
        UserError: the folder is no run, or its config can't be built.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{folder}: no config.yaml; give the OUTPUT_DIR of a training with tools/train_net.py")
    cfg = read_config(str(config), overrides)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    check_backbone(cfg)
    return cfg


def load_trained_run(folder: Path, cfg: CfgNode, weights: Path | None = None) -> TrainedRun:
    """A run's detector.

    Args:
        cfg: of :func:`read_run_config`.
        weights: a checkpoint; by default the run's newest, which is what its evaluation is of.

    Raises:
        UserError: the run has no checkpoint, or one that doesn't fit its config.
    """
    weights = weights or newest_checkpoint(folder)[0]
    if weights is None:
        raise UserError(f"{folder} has no checkpoint; train the run first, or give another")
    model = build_model(cfg).eval()
    ignore_padding_in_heads(model)
    checkpointer = StrictCheckpointer(model, assumptions=WeightsAssumptions.from_cfg(cfg), needs_heads=True)
    checkpointer.load(str(weights), checkpointables=[])
    return TrainedRun(folder, cfg, model, weights)
