"""What a run leaves in its OUTPUT_DIR, and the record that says what was run."""

import json
import shlex
import sys
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..analysis.complexity import backbone_gflops, count_parameters, picture_size

# A run that failed at its start leaves config.yaml, log.txt and an empty metrics.json; it should not be in the way.
PATTERNS = ("last_checkpoint", "metrics.json", "run.json", "*.pth", "events.out.tfevents.*", "inference/**/*")


def run_files(folder: Path) -> list[Path]:
    """The files in a folder that only a run which got under way leaves there."""
    found = [path for pattern in PATTERNS for path in sorted(folder.glob(pattern))]
    return [path for path in found if path.is_file() and path.stat().st_size]


def write_run_record(cfg: CfgNode, args: Namespace, model: nn.Module) -> None:
    """Writes `run.json`: the command, the data, and the detector's size.

    GFLOPs are multiply-adds of trunk and FPN, as the paper counts them, for one picture of the test size, 4:3.
    """
    height, width = picture_size(cfg)
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    metadata = {name: MetadataCatalog.get(name) for name in datasets if name in MetadataCatalog}
    record = {
        "command": shlex.join(sys.argv),
        "config_file": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "allow_partial_trunk": args.allow_partial_trunk,
        "device": torch.cuda.get_device_name() if cfg.MODEL.DEVICE != "cpu" else "cpu",
        "processes": args.num_gpus * args.num_machines,
        "versions": {package: version(package) for package in ("torch", "torchvision", "se_detection")},
        "data": {
            name: {"json": data.get("json_file"), "images": data.get("image_root")} for name, data in metadata.items()
        },
        "classes": next((data.thing_classes for data in metadata.values() if data.get("thing_classes")), []),
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "depth": cfg.MODEL.RESNETS.DEPTH,
        "parameters": count_parameters(model),
        "backbone_gflops": backbone_gflops(model.backbone, height, width),
        "backbone_input": [height, width],
    }
    Path(cfg.OUTPUT_DIR, "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
