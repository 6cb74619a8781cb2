"""A run that goes on, with a config that may have changed since."""

from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from ..config import flatten
from ..errors import UserError
from ..evaluation.runs import read_record

# A checkpoint holds the optimizer's state, and with it these; a new value would have no effect.
FIXED = (
    "SEED",
    "SOLVER.AMP.ENABLED",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.EMA_DECAY",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.TRUNK_LR_FACTOR",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)
# Where a run lies, on what machine, and what it began with, change nothing.
UNIMPORTANT = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.WEIGHTS")


def differences(cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """The keys whose values are not those of the run in `OUTPUT_DIR`: the run's value and the present one.

    Empty where the run has no `config.yaml`.
    """
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    now = flatten(yaml.safe_load(cfg.dump()))
    then = flatten(before) if isinstance(before, dict) else {}
    return {
        key: (then[key], value)
        for key, value in now.items()
        if key in then and then[key] != value and key not in UNIMPORTANT
    }


def fixed_values(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint keeps of a config, by key."""
    return {key: reduce(getattr, key.split("."), cfg) for key in FIXED}


def check_fixed_values(cfg: CfgNode, kept: dict[str, Any]) -> None:
    """Refuses values that a checkpoint would override without a word.

    Args:
        cfg: the present config.
        kept: :func:`fixed_values` of the checkpoint.

    Raises:
        UserError: there is one.
    """
    for key, now in fixed_values(cfg).items():
        if kept.get(key, now) != now:
            raise UserError(
                f"--resume: {key} was {kept[key]} in the run in {cfg.OUTPUT_DIR}, whose checkpoint keeps it, and is "
                f"{now} now; leave it as it was, or start elsewhere with MODEL.WEIGHTS of that run"
            )


def as_begun(cfg: CfgNode) -> CfgNode:
    """The config for as many processes as a run began with, where `SOLVER.REFERENCE_WORLD_SIZE` scales by them.

    Batch, learning rate and schedule then stay what they were, and a resumed iteration means what it meant.
    """
    if not cfg.SOLVER.REFERENCE_WORLD_SIZE:
        return cfg
    record = comm.all_gather(read_record(Path(cfg.OUTPUT_DIR)) if comm.is_main_process() else {})[0]
    began_with = record.get("processes", comm.get_world_size())
    cfg = DefaultTrainer.auto_scale_workers(cfg, began_with).clone()
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    cfg.freeze()
    return cfg
