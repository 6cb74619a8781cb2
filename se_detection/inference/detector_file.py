"""A detector in one file: weights, what they assume, config and classes."""

import zipfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.assumptions import WeightsAssumptions
from ..checkpoint.read_weights import read_checkpoint
from ..config.buildable import check_model
from ..config.defaults import classes_node
from ..config.yaml_file import BASE, read_yaml
from ..data.coco_format import is_integer
from ..errors import UserError
from ..files import write_whole
from ..runs.trained_run import read_run_config

# What makes a weights file one of these.
KEY = "se_predictor"


def write_exported(path: Path, model: nn.Module, cfg: CfgNode, categories: dict[int, str]) -> None:
    """Writes a detector; :func:`read_exported` reads it. A file that is there is left alone.

    Raises:
        UserError: there is a file already, or no folder for it.
        OSError: it can't be written.
    """
    if path.exists():
        raise UserError(f"{path} is there already; remove it, or choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    assumptions = WeightsAssumptions.from_cfg(cfg)
    content = {
        "model": model.state_dict(),
        KEY: {"config": cfg.dump(), "categories": [[id_, name] for id_, name in categories.items()]},
        **({"assumptions": assumptions.to_dict()} if assumptions else {}),
    }
    write_whole(path, partial(torch.save, content))


def read_exported(path: Path) -> tuple[CfgNode, dict[int, str]]:
    """The config, for the device at hand, and the classes of a file of :func:`write_exported`, which may be anyone's.

    Nothing in it is run, and its config names no other file. The weights are what
    :class:`~se_detection.checkpoint.checkpointer.StrictCheckpointer` loads from the same file.

    Raises:
        UserError: it is damaged or no such file.
    """
    content = read_checkpoint(path).get(KEY)
    if content is None:
        raise UserError(
            f"{path} holds weights alone; name a file of SEPredictor.save, or give a run's folder to from_run"
        )
    if not zipfile.is_zipfile(path) or not isinstance(content, dict) or set(content) != {"config", "categories"}:
        raise UserError(f"{path} is damaged: it has no config and classes; export the detector again")
    with zipfile.ZipFile(path) as archive:
        # torch writes checksums, and doesn't look at them.
        if (changed := archive.testzip()) is not None:
            raise UserError(f"{path} is damaged: {changed} in it is not what was written; get the file again")
    categories = _categories(path, content["categories"])
    cfg = _config(path, content["config"])
    if len(categories) != (number := cfg.MODEL[classes_node(cfg)].NUM_CLASSES):
        raise UserError(f"{path} is damaged: it has {len(categories)} classes, and its config has {number}")
    return cfg, categories


def _categories(path: Path, content: Any) -> dict[int, str]:
    pairs = content if isinstance(content, list) else []
    good = all(
        isinstance(pair, list) and len(pair) == 2 and is_integer(pair[0]) and isinstance(pair[1], str) for pair in pairs
    )
    if not pairs or not good or len({id_ for id_, _ in pairs}) < len(pairs):
        raise UserError(f"{path} is damaged: its classes are no list of different ids with names")
    return dict(pairs)


def _config(path: Path, content: Any) -> CfgNode:
    if not isinstance(content, str):
        raise UserError(f"{path} is damaged: its config is a {type(content).__name__}")
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        # What can't be written is no YAML, and is told below.
        file.write_text(content, encoding="utf-8", errors="replace")
        try:
            if BASE in (read_yaml(file) or {}):
                raise UserError(f"{BASE} would have another file read")
            cfg = read_run_config(Path(folder))
            check_model(cfg)
        except UserError as error:
            raise UserError(f"{path}: its config can't be used: {str(error).removeprefix(f'{file}: ')}") from error
    return cfg
