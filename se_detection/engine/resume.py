"""Resuming a run, whose config may have changed since it started."""

import logging
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from ..config.defaults import flatten
from ..config.yaml_file import read_yaml
from ..errors import UserError
from ..runs.checkpoints import newest_checkpoint
from ..runs.record import read_record
from ..runs.run_folder import CONFIG

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A checkpoint's optimizer state holds these values: a new value would have no effect.
FIXED = (
    "SEED",
    "SOLVER.AMP.ENABLED",
    "SOLVER.BASE_LR",
    "SOLVER.BETAS",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.EMA_DECAY",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.OPTIMIZER",
    "SOLVER.BACKBONE_MULTIPLIER",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)
# These make no difference to a resumed run.
UNIMPORTANT = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "MODEL.WEIGHTS")


def changed_keys(cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """The keys that differ from the run in `OUTPUT_DIR`, each with the run's value and the new one.

    Empty if the run has no `config.yaml`.
    """
    try:
        before = read_yaml(Path(cfg.OUTPUT_DIR, CONFIG))
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
    """The config values that a checkpoint keeps, by key."""
    return {key: reduce(getattr, key.split("."), cfg) for key in FIXED}


def check_fixed_values(cfg: CfgNode, kept: dict[str, Any]) -> None:
    """Refuses config values that a checkpoint would override silently.

    Args:
        cfg: the new config.
        kept: :func:`fixed_values` of the checkpoint.

    Raises:
        UserError: a value differs.
    """
    for key, now in fixed_values(cfg).items():
        if kept.get(key, now) != now:
            raise UserError(
                "train.fixed_value",
                f"--resume: {key} was {kept[key]} in the run in {cfg.OUTPUT_DIR}, whose checkpoint keeps it, and is "
                f"{now} now; set it back, or start a new run with MODEL.WEIGHTS of that run",
            )


def scale_to_original(cfg: CfgNode) -> CfgNode:
    """Scales the config to the run's original number of processes if `SOLVER.REFERENCE_WORLD_SIZE` is set.

    Batch size, learning rate and schedule then stay the same when a run is resumed by another number of processes.
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
    """The newest whole checkpoint that the main process sees; the same path in all processes.

    Args:
        folder: the run folder.
        set_aside: rename the corrupt ones that are newer to `NAME.corrupt`; by default they are only skipped.

    Raises:
        UserError: see :func:`newest_checkpoint`.
    """

    def find() -> Path | None:
        found, corrupt = newest_checkpoint(folder)
        for path in corrupt:
            aside = path.with_name(f"{path.name}.corrupt")
            if set_aside:
                path.replace(aside)
            done = f"was set aside as {aside.name}" if set_aside else "is skipped"
            logger.warning("%s is truncated or corrupt and %s; %s is used", path, done, found)
        return found

    return on_main_process(find)


def on_main_process(function: Callable[[], T]) -> T:
    """Calls a function in the main process; all processes return its result, or raise its :class:`UserError`."""
    result: Any = None
    failure: UserError | None = None
    if comm.is_main_process():
        try:
            result = function()
        except UserError as error:
            failure = error
    result, failure = comm.all_gather((result, failure))[0]
    if failure:
        raise failure
    return result
