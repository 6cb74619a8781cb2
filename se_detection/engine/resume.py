"""A run that goes on, with a config that may have changed since."""

import logging
import math
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from torch import Tensor

from ..config.defaults import flatten
from ..config.values import LARGEST, LARGEST_INTEGER
from ..config.yaml_file import read_yaml
from ..errors import UserError
from ..runs.checkpoints import newest_checkpoint
from ..runs.record import read_record

logger = logging.getLogger(__name__)

# A checkpoint holds the optimizer's state, and with it these; a new value would have no effect.
FIXED = (
    "SEED",
    "SOLVER.AMP.ENABLED",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.EMA_DECAY",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)
# Where a run lies, on what machine, and what it began with, change nothing.
UNIMPORTANT = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.WEIGHTS")


def changed_keys(cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """The keys whose values are not those of the run in `OUTPUT_DIR`: the run's value and the present one.

    Empty where the run has no `config.yaml`.
    """
    try:
        before = read_yaml(Path(cfg.OUTPUT_DIR, "config.yaml"))
    except UserError:
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


def check_state(found: Any, expected: Any, where: str = "the trainer's state") -> None:
    """Finds what a checkpoint says of a training that no training can have said, before it is gone on with.

    Args:
        found: the checkpoint's.
        expected: the present one, at its beginning; what it doesn't have, or has no value of, is not looked at.

    Raises:
        UserError: a part is of another kind, is a number that is not finite, or a tensor of another shape.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in expected.keys() & found.keys():
            check_state(found[key], expected[key], f"{where}, {key}")
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        for place, item in enumerate(found if expected else ()):
            check_state(item, expected[min(place, len(expected) - 1)], where)
    elif isinstance(expected, Tensor) and isinstance(found, Tensor):
        if found.shape != expected.shape:
            raise UserError(f"{where} has shape {tuple(found.shape)}, and it is {tuple(expected.shape)}")
    elif not _alike(found, expected):
        raise UserError(f"{where} is {found!r:.80}, which no training has saved")


def _alike(found: Any, expected: Any) -> bool:
    if expected is None:
        return True
    if type(expected) not in (int, float):
        return type(found) is type(expected)
    # The best value so far is at first lower than any.
    largest = LARGEST if type(found) is float else LARGEST_INTEGER
    return type(found) in {int, type(expected)} and (abs(found) <= largest or math.isinf(expected))


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


def shared_checkpoint(folder: Path, *, set_aside: bool) -> Path | None:
    """The newest whole checkpoint that the main process sees.

    Args:
        folder: the run's.
        set_aside: whether broken ones that are newer are renamed, to `NAME.corrupt`, or only passed over.

    Raises:
        UserError: see :func:`newest_checkpoint`.
    """
    found, reason = None, ""
    if comm.is_main_process():
        try:
            found, broken = newest_checkpoint(folder)
        except UserError as error:
            broken, reason = [], str(error)
        for path in broken:
            aside = path.with_name(f"{path.name}.corrupt")
            if set_aside:
                path.replace(aside)
            done = f"was set aside as {aside.name}" if set_aside else "is passed over"
            logger.warning("%s is truncated or corrupt and %s; %s is used", path, done, found)
    found, reason = comm.all_gather((found, reason))[0]
    if reason:
        raise UserError(reason)
    return found
