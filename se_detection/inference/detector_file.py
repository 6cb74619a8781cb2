"""A detector in one file: weights, their assumptions, config and classes."""

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
from ..files import check_output, write_whole
from ..runs.run_folder import CONFIG
from ..runs.trained_run import read_run_config

# Entry of the weights file with config and classes.
KEY = "se_predictor"


def write_detector_file(path: Path, model: nn.Module, cfg: CfgNode, categories: dict[int, str]) -> None:
    """Writes a detector for :func:`read_detector_file`.

    Raises:
        UserError: the file exists, or its folder does not.
        OSError: the file can't be written.
    """
    check_output(path)
    assumptions = WeightsAssumptions.from_cfg(cfg)
    content = {
        "model": model.state_dict(),
        KEY: {"config": cfg.dump(), "categories": [[id_, name] for id_, name in categories.items()]},
        **({"assumptions": assumptions.to_dict()} if assumptions else {}),
    }
    write_whole(path, partial(torch.save, content))


def read_detector_file(path: Path) -> tuple[CfgNode, dict[int, str]]:
    """Reads config (with an available device) and classes from a file of :func:`write_detector_file`.

    The file may be untrusted: no code in it is run, and its config can't refer to other files.
    :class:`~se_detection.checkpoint.checkpointer.StrictCheckpointer` loads the weights from the same file.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    content = read_checkpoint(path).get(KEY)
    if content is None:
        raise UserError(
            f"{path} has only weights; give a file of SEPredictor.save, or use from_run with the folder of a run"
        )
    if not zipfile.is_zipfile(path) or not isinstance(content, dict) or set(content) != {"config", "categories"}:
        raise UserError(f"{path} is damaged: it has no config and classes; export the detector again")
    with zipfile.ZipFile(path) as archive:
        # torch writes checksums, but doesn't check them.
        if (changed := archive.testzip()) is not None:
            raise UserError(f"{path} is damaged: {changed} in it has a wrong checksum; get the file again")
    categories = _categories(path, content["categories"])
    cfg = _config(path, content["config"])
    if len(categories) != (number := cfg.MODEL[classes_node(cfg)].NUM_CLASSES):
        raise UserError(
            f"{path} is damaged: it has {len(categories)} classes, but its config has {number}; get the file again"
        )
    return cfg, categories


def _categories(path: Path, content: Any) -> dict[int, str]:
    pairs = content if isinstance(content, list) else []
    valid = all(
        isinstance(pair, list) and len(pair) == 2 and is_integer(pair[0]) and isinstance(pair[1], str) for pair in pairs
    )
    if not pairs or not valid or len({id_ for id_, _ in pairs}) < len(pairs):
        raise UserError(f"{path} is damaged: its classes are not a list of names with unique ids; get the file again")
    return dict(pairs)


def _config(path: Path, content: Any) -> CfgNode:
    if not isinstance(content, str):
        raise UserError(f"{path} is damaged: its config is of type {type(content).__name__}; get the file again")
    with TemporaryDirectory() as folder:
        file = Path(folder, CONFIG)
        # Text that can't be encoded is not valid YAML, which is reported below.
        file.write_text(content, encoding="utf-8", errors="replace")
        try:
            if BASE in (read_yaml(file) or {}):
                raise UserError(f"{BASE} refers to another file")
            cfg = read_run_config(Path(folder))
            check_model(cfg)
        except UserError as error:
            raise UserError(f"{path}: its config can't be used: {str(error).removeprefix(f'{file}: ')}") from error
    return cfg
