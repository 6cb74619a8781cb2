"""A detector in one file: weights, their assumptions, config and classes."""

import zipfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.read_weights import read_checkpoint
from ..checkpoint.timm_weights import assumptions_of
from ..config.buildable import check_model
from ..config.defaults import classes_node
from ..config.yaml_file import BASE, read_yaml
from ..errors import UserError, counted
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
    assumptions = assumptions_of(cfg)
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
            "weights.only_weights",
            f"{path} has only weights; give a file of SEPredictor.save, or use from_run with the folder of a run",
        )
    try:
        # torch writes checksums, but doesn't check them.
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except zipfile.BadZipFile as error:
        raise _broken(path, "it has no config and classes") from error
    if changed:
        raise _broken(path, f"{changed} in it has a wrong checksum")
    return config_and_classes(path, content)


def config_and_classes(path: Path, content: Any) -> tuple[CfgNode, dict[int, str]]:
    """Config and classes from the untrusted content of a file: `config`, a text, and `categories`, ids with names.

    Raises:
        UserError: the content is damaged; the message names the path.
    """
    try:
        text, pairs = str(content["config"]), [(int(id_), str(name)) for id_, name in content["categories"]]
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise _broken(path, "it has no config and classes") from error
    cfg = _config(path, text)
    categories, number = dict(pairs), cfg.MODEL[classes_node(cfg)].NUM_CLASSES
    if len(categories) != number:
        raise _broken(path, f"it has {counted(len(categories), 'class', 'classes')}, but its config has {number}")
    return cfg, categories


def _broken(path: Path, reason: str) -> UserError:
    return UserError("weights.broken", f"{path} is damaged: {reason}; get the file again, or export it again")


def _config(path: Path, text: str) -> CfgNode:
    with TemporaryDirectory() as folder:
        file = Path(folder, CONFIG)
        # Text that can't be encoded is not valid YAML, which is reported below.
        file.write_text(text, encoding="utf-8", errors="replace")
        try:
            if BASE in (read_yaml(file) or {}):
                raise UserError("config.bad_base", f"{BASE} refers to another file; write its values out")
            cfg = read_run_config(Path(folder))
            check_model(cfg)
        except UserError as error:
            reason = error.message.removeprefix(f"{file}: ")
            raise UserError(error.code, f"{path}: its config can't be used: {reason}") from error
    return cfg
