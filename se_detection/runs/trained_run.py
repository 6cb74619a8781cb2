"""Loads the config and the trained detector of a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.checkpointer import StrictCheckpointer
from ..checkpoint.timm_weights import assumptions_of
from ..config.buildable import check_backbone
from ..config.read_config import read_config
from ..errors import UserError
from ..modeling.padding import ignore_padding_in_heads
from .checkpoints import newest_checkpoint
from .run_folder import CONFIG


@dataclass(frozen=True)
class TrainedRun:
    """A run's config, its detector in evaluation mode, and the checkpoint from which it was loaded."""

    folder: Path
    cfg: CfgNode
    model: nn.Module
    weights: Path


def read_run_config(folder: Path, overrides: Sequence[str] = ()) -> CfgNode:
    """The config with which a run was trained, with overrides (`KEY VALUE ...`), for the GPU if there is one.

    Raises:
        UserError: the folder is not a run, or its config can't be built.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise UserError("run.no_config", f"{folder}: no {CONFIG}; give the output folder of se-det train")
    cfg = read_config(str(config), overrides)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    check_backbone(cfg)
    return cfg


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        UserError: the run has none, or all are corrupt.
    """
    weights = newest_checkpoint(folder)[0]
    if weights is None:
        raise UserError("run.no_checkpoint", f"{folder} has no checkpoint; train the run first, or give another run")
    return weights


def load_trained_run(folder: Path, cfg: CfgNode, weights: Path | None = None) -> TrainedRun:
    """Loads the detector of a run.

    Args:
        cfg: the config from :func:`read_run_config`.
        weights: a checkpoint; by default the run's newest.

    Raises:
        UserError: the run has no checkpoint, or the checkpoint does not fit the config.
    """
    weights = weights or last_checkpoint(folder)
    model = build_model(cfg).eval()
    ignore_padding_in_heads(model)
    checkpointer = StrictCheckpointer(model, assumptions=assumptions_of(cfg), needs_heads=True)
    checkpointer.load(str(weights), checkpointables=[])
    return TrainedRun(folder, cfg, model, weights)
