"""From the command line to a config that was checked against the machine, the data and the output folder."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer

from ..checkpoint.files import newest_checkpoint
from ..checkpoint.timm_handler import PREFIX, source_of
from ..config import flatten
from ..data.coco import check_registered
from ..errors import UserError
from .run_folder import check_run_folder
from .user_data import use_user_data


def load_config(args: Namespace) -> CfgNode:
    """The frozen config of a run; whatever can be found wrong before anything is written is found here.

    Args:
        args: of :func:`argument_parser`.

    Raises:
        UserError: see the checks below.
    """
    cfg = read_config(args.config_file, args.opts)
    check_machine(cfg, args)
    check_backbone(cfg)
    use_user_data(cfg, args)
    _check_data(cfg, args)
    check_run_folder(cfg, args)
    check_weights(cfg, args)
    check_model(cfg)
    cfg.freeze()
    return cfg


def read_config(config_file: str, overrides: Sequence[str] = (), *, base: CfgNode | None = None) -> CfgNode:
    """detectron2's defaults under a config file under overrides (`KEY VALUE ...`); not frozen.

    Args:
        base: other defaults, which are left as they are.

    Raises:
        UserError: the file can't be read or is no YAML, or a key or value is unknown.
    """
    if not config_file:
        raise UserError("--config-file is missing; configs/ has the project's own")
    if not Path(config_file).is_file():
        raise UserError(f"--config-file {config_file}: there is no such file")
    cfg = get_cfg() if base is None else base.clone()
    keys = list(flatten(cfg))
    try:
        # Without allow_unsafe=False, detectron2 lets a yaml file construct any Python object.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except OSError as error:
        raise UserError(f"{config_file}: {error.strerror}: {error.filename}") from error
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{config_file}: it makes Python objects ({error.problem}), and no code is run from a config; write the "
            "values out, or run detectron2's own tools/train_net.py with DETECTRON2_ENV_MODULE=se_detection.env"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{config_file} is no valid YAML: {' '.join(str(error).split())}") from error
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{config_file}: {_explain(error, keys)}") from error
    try:
        cfg.merge_from_list(_as_floats(overrides, flatten(cfg)))
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise UserError(f"config overrides: {_explain(error, keys)}") from error
    return cfg


def _as_floats(overrides: Sequence[str], defaults: dict[str, Any]) -> list[str]:
    """Writes `4` as `4.0` where the key has such a value; detectron2 refuses it otherwise."""
    words = list(overrides)
    for place in range(1, len(words), 2):
        if isinstance(defaults.get(words[place - 1]), float) and words[place].lstrip("+-").isdecimal():
            words[place] += ".0"
    return words


def _explain(error: Exception, keys: list[str]) -> str:
    text = " ".join(str(error.args[0] if error.args else error).split())
    if "Non-existent" in text:
        unknown = text.rsplit(maxsplit=1)[-1]
        close = get_close_matches(unknown, keys, n=1)
        return f"unknown config key {unknown}" + (f"; did you mean {close[0]}?" if close else "")
    return text


def check_machine(cfg: CfgNode, args: Namespace) -> None:
    """Sets the config's device, and sees whether machine, processes and solver fit each other.

    Raises:
        UserError: they don't.
    """
    if not torch.cuda.is_available():
        if "MODEL.DEVICE" in args.opts and cfg.MODEL.DEVICE != "cpu":
            raise UserError(f"MODEL.DEVICE: {cfg.MODEL.DEVICE} is not there; leave it out to use the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        if cfg.SOLVER.AMP.ENABLED:
            raise UserError("SOLVER.AMP.ENABLED: detectron2's mixed precision needs a GPU; set it to False")
        if cfg.MODEL.RESNETS.NORM == "SyncBN":
            raise UserError("MODEL.RESNETS.NORM: SyncBN needs a GPU; set it to BN or GN")
    elif args.num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}")
    if min(args.num_gpus, args.num_machines) < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
            "give at least one GPU (or process) and machine, and a rank from 0 on"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("--dist-url auto: several machines need the first one's address, such as tcp://10.0.0.1:29500")
    for key in ("IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise UserError(f"SOLVER.{key}: {cfg.SOLVER[key]} is less than 1")
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT: {cfg.INPUT.FORMAT!r} is neither RGB nor BGR")
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise UserError(f"SOLVER.EMA_DECAY: {cfg.SOLVER.EMA_DECAY} is not from 0 (off) to below 1; 0.999 is usual")
    for key in ("CHECKPOINTS_TO_KEEP", "SKIP_NON_FINITE", "TRUNK_FROZEN_ITERS", "TRUNK_LR_FACTOR"):
        if cfg.SOLVER[key] < 0:
            raise UserError(f"SOLVER.{key}: {cfg.SOLVER[key]} is negative")
    if cfg.SOLVER.EMA_DECAY and cfg.TEST.PRECISE_BN.ENABLED:
        raise UserError(
            "SOLVER.EMA_DECAY: TEST.PRECISE_BN would mend the norms of other weights than are evaluated; take one"
        )
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference and cfg.SOLVER.IMS_PER_BATCH % reference):
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE: SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} can't be shared equally by "
            f"{reference} processes"
        )
    world_size = args.num_gpus * args.num_machines
    if cfg.SOLVER.IMS_PER_BATCH % world_size and not cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} can't be shared equally by {world_size} processes"
        )


def check_backbone(cfg: CfgNode) -> None:
    """Builds the config's backbone without memory or arithmetic, to see whether it can be.

    Raises:
        UserError: it can't be.
    """
    if cfg.MODEL.BACKBONE.NAME not in BACKBONE_REGISTRY:
        close = get_close_matches(cfg.MODEL.BACKBONE.NAME, [name for name, _ in BACKBONE_REGISTRY], n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"MODEL.BACKBONE.NAME: no backbone is named {cfg.MODEL.BACKBONE.NAME!r}{suggestion}")
    with torch.device("meta"), explained(cfg.MODEL.BACKBONE.NAME):
        build_backbone(cfg)


def check_model(cfg: CfgNode) -> None:
    """Builds the config's detector, optimizer and schedule as :func:`check_backbone` builds the backbone.

    Raises:
        UserError: one of them can't be built.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), explained(f"this {cfg.MODEL.META_ARCHITECTURE}"):
        optimizer = build_optimizer(cfg, build_model(cfg))
        build_lr_scheduler(cfg, optimizer)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns whatever a builder raises into a :class:`UserError` that says what could not be built."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever class: detectron2 says with many what it can't build
        reason = " ".join(str(error).split()) or "an assertion of detectron2's failed"
        raise UserError(f"{what} can't be built: {type(error).__name__}: {reason}") from error


def _check_data(cfg: CfgNode, args: Namespace) -> None:
    names = [*cfg.DATASETS.TEST] if args.eval_only else [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise UserError(
            "DATASETS.TRAIN and DATASETS.TEST are empty; name data sets, or give --train-json and --val-json"
        )
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    key = "MODEL.RETINANET.NUM_CLASSES" if retinanet else "MODEL.ROI_HEADS.NUM_CLASSES"
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES if retinanet else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in map(str, names):
        check_registered(name)
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "coco":
            raise UserError(
                f"data set {name!r} is not evaluated as COCO is; run detectron2's own tools/train_net.py on it, "
                "with DETECTRON2_ENV_MODULE=se_detection.env"
            )
        classes = metadata.get("thing_classes", ())
        if classes and len(classes) != num_classes:
            raise UserError(f"{key}: {num_classes} contradicts data set {name!r}, which has {len(classes)} classes")


def check_weights(cfg: CfgNode, args: Namespace) -> None:
    """Whether there is what a run begins with, or goes on from.

    Raises:
        UserError: there isn't.
    """
    weights = cfg.MODEL.WEIGHTS
    # Other machines may not see the checkpoint that the first has.
    if args.resume and (args.machine_rank > 0 or newest_checkpoint(Path(cfg.OUTPUT_DIR))[0]):
        return
    if args.eval_only and args.resume:
        raise UserError(f"--resume: {cfg.OUTPUT_DIR} has no checkpoint to evaluate; name one by MODEL.WEIGHTS instead")
    if args.eval_only and not weights:
        raise UserError("--eval-only: name what to evaluate, by MODEL.WEIGHTS or by --resume and the run's OUTPUT_DIR")
    if args.fuse and not args.eval_only:
        raise UserError("--fuse: a detector is made faster for evaluation alone; add --eval-only")
    if weights.startswith(PREFIX):
        source_of(weights.removeprefix(PREFIX))
    if weights and "://" not in weights and not Path(weights).is_file():
        raise UserError(f"MODEL.WEIGHTS: there is no file {weights} (looked for in {Path(weights).absolute().parent})")
