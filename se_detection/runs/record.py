"""A run's `run.json`: the command, the data, the classes and the model's size."""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..data.coco_format import Rule, is_integer, is_name, is_number, problems
from ..errors import UserError
from ..files import read_json, write_whole
from ..modeling.complexity import backbone_gflops, count_parameters, padded_size


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_name, value))


def _is_name_or_none(value: Any) -> bool:
    return value is None or is_name(value)


def _is_data(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(paths, dict) and all(_is_name_or_none(paths.get(key)) for key in ("json", "images"))
        for paths in value.values()
    )


RECORD_RULES = {
    "command": Rule("a text", lambda value: isinstance(value, str), required=False),
    "backbone": Rule("a name", is_name, required=False),
    "depth": Rule("an integer", is_integer, required=False),
    "backbone_input": Rule(
        "a height and a width",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_integer, value)),
        required=False,
    ),
    "parameters": Rule("a number", is_number, required=False),
    "backbone_gflops": Rule("a number", is_number, required=False),
    "classes": Rule("a list of names", _are_names, required=False),
    "data": Rule("paths by name: `json` and `images`", _is_data, required=False),
    "processes": Rule("a positive integer", lambda value: is_integer(value) and value > 0, required=False),
    "resumed": Rule("a list", lambda value: isinstance(value, list), required=False),
}


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a run's `run.json`, or nothing where there is none.

    Raises:
        UserError: the file is no record of a run.
    """
    path = folder / "run.json"
    record = read_json(path) if path.is_file() else {}
    if wrong := next(problems(record, RECORD_RULES), None):
        raise UserError(f"{path} is no record of a run: it {wrong.text}, or remove it and evaluate the run again")
    return record


def class_names(datasets: Sequence[str]) -> list[str]:
    """The class names of the first of several data sets that has any."""
    known = (MetadataCatalog.get(name).get("thing_classes") for name in datasets if name in MetadataCatalog)
    return next((list(names) for names in known if names), [])


def write_run_record(
    cfg: CfgNode, args: Namespace, model: nn.Module, size: tuple[int, int], *, resumed_at: int | None
) -> None:
    """Writes `run.json`: the command, the data, and the model's size.

    GFLOPs are multiply-adds of the backbone, as the paper counts them, for one image, padded as detectron2 does.

    Args:
        size: height and width of the image.
        resumed_at: the iteration that a run goes on from; the record that is there gets a line for that alone.
    """
    path = Path(cfg.OUTPUT_DIR, "run.json")
    processes = args.num_gpus * args.num_machines
    if resumed_at is not None and (record := read_record(Path(cfg.OUTPUT_DIR))):
        resumed = {"iteration": resumed_at, "command": shlex.join(sys.argv), "processes": processes}
        record["resumed"] = [*record.get("resumed", []), resumed]
        _write_json(path, record)
        return
    height, width = size
    padded = padded_size(model.backbone, height, width)
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    metadata = {name: MetadataCatalog.get(name) for name in datasets if name in MetadataCatalog}
    record = {
        "command": shlex.join(sys.argv),
        "config_file": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "allow_partial_backbone": args.allow_partial_backbone,
        "device": torch.cuda.get_device_name() if cfg.MODEL.DEVICE != "cpu" else "cpu",
        "processes": processes,
        "versions": {package: version(package) for package in ("torch", "torchvision", "se_detection")},
        "data": {
            name: {"json": data.get("json_file"), "images": data.get("image_root")} for name, data in metadata.items()
        },
        "classes": class_names(datasets),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "depth": cfg.MODEL.RESNETS.DEPTH,
        "parameters": count_parameters(model),
        "backbone_gflops": backbone_gflops(model.backbone, height, width),
        "backbone_input": list(padded),
    }
    _write_json(path, record)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
