"""`run.json`, the record of a run: the command, the data, the classes and the size of the model."""

import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import Backbone
from detectron2.utils import comm
from torch import nn

from ..config.timm_config import added_se, which_network
from ..errors import UserError
from ..files import read_json, write_json
from ..modeling.complexity import backbone_gflops, count_parameters, padded_size
from .run_folder import RECORD


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a run; empty if it has none.

    Raises:
        UserError: the file is not the record of a run.
    """
    path = folder / RECORD
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise UserError("run.bad_record", f"{path} is not the record of a run; remove it and evaluate the run again")
    return record


def last_start(folder: Path) -> int | None:
    """When the run was last started or resumed, in ns since 1970; None if there is no run."""
    path = folder / RECORD
    return path.stat().st_mtime_ns if path.is_file() else None


def class_names(datasets: Sequence[str]) -> list[str]:
    """The class names of the first data set that has any; empty if none has."""
    known = (MetadataCatalog.get(name).get("thing_classes") for name in datasets if name in MetadataCatalog)
    return next((list(names) for names in known if names), [])


def write_run_record(
    cfg: CfgNode,
    model: nn.Module,
    size: tuple[int, int],
    *,
    config_file: str = "",
    allow_partial_backbone: bool = False,
    resumed_at: int | None = None,
) -> None:
    """Writes `run.json` into `OUTPUT_DIR`; for a resumed run, adds an entry to the existing record.

    GFLOPs are multiply-adds of the backbone, as in the paper, for one image padded as in detectron2.

    Args:
        size: height and width of the image in pixels.
        config_file: the path given on the command line.
        allow_partial_backbone: whether the weights were loaded with this option.
        resumed_at: the iteration from which the run resumes.
    """
    folder = Path(cfg.OUTPUT_DIR)
    command, processes = shlex.join(sys.argv), comm.get_world_size()
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    metadata = {name: MetadataCatalog.get(name) for name in datasets if name in MetadataCatalog}
    files = {
        name: {"json": _absolute(data.get("json_file")), "images": _absolute(data.get("image_root"))}
        for name, data in metadata.items()
    }
    if resumed_at is not None and (record := read_record(folder)):
        resumed = {"iteration": resumed_at, "command": command, "processes": processes}
        record["resumed"] = [*record.get("resumed", []), resumed]
        # The data may have moved, and the test set may be another.
        record["data"] = record.get("data", {}) | files
        # The training evaluates again.
        record.pop("evaluated", None)
        write_json(folder / RECORD, record, indent=2)
        return
    record = {
        "command": command,
        "config_file": config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "allow_partial_backbone": allow_partial_backbone,
        "device": torch.cuda.get_device_name() if cfg.MODEL.DEVICE != "cpu" else "cpu",
        "processes": processes,
        "versions": {package: version(package) for package in ("torch", "torchvision", "se_detection")},
        "data": files,
        "classes": class_names(datasets),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        **which_network(cfg),
        "added_se": added_se(cfg),
        "parameters": count_parameters(model),
    }
    # A custom architecture may have no backbone in detectron2's sense.
    if isinstance(backbone := getattr(model, "backbone", None), Backbone):
        record |= {
            "backbone_gflops": backbone_gflops(backbone, *size),
            "backbone_input": list(padded_size(backbone, *size)),
        }
    write_json(folder / RECORD, record, indent=2)


def record_evaluation(folder: Path) -> None:
    """Adds the command of an evaluation, whose results are now in the folder, to the record."""
    # The record of a run without training was written by an evaluation, perhaps this one.
    record, command = read_record(folder), shlex.join(sys.argv)
    evaluated = {"evaluated": command if command != record.get("command") else None}
    write_json(folder / RECORD, record | evaluated, indent=2)


def recorded_commands(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The commands of a run in their order, each with what it did; a command that was repeated stands once."""
    starts = [("started", record.get("command"))]
    starts += [(f"resumed at iteration {entry['iteration']}", entry["command"]) for entry in record.get("resumed", [])]
    found = [
        (", ".join(what for what, _ in group), command)
        for command, group in groupby(starts, key=itemgetter(1))
        if command
    ]
    return found + ([("evaluated", record["evaluated"])] if record.get("evaluated") else [])


def _absolute(path: str | None) -> str | None:
    # Not of a URL.
    return os.path.abspath(path) if path and os.path.exists(path) else path
