"""From the command line to a config that was checked against the machine, the data and the output folder."""

import os
from argparse import Namespace
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.data.transforms import AugInput

from ..checkpoint.timm_handler import PREFIX, source_of
from ..config.buildable import check_backbone, check_model, explained
from ..config.defaults import classes_node
from ..config.read_config import read_config
from ..data.coco_sets import check_registered
from ..data.mapper import CheckedMapper
from ..errors import UserError
from ..evaluation.coco_evaluator import EVALUATED
from ..runs.checkpoints import newest_checkpoint
from ..runs.run_folder import check_run_folder
from .user_data import use_user_data

# Detectors that find no stuff, or nothing else.
NOT_PANOPTIC = ("GeneralizedRCNN", "RetinaNet", "SemanticSegmentor")


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
    _check_images(cfg, args)
    cfg.freeze()
    return cfg


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
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT: {cfg.INPUT.FORMAT!r} is neither RGB nor BGR")
    if cfg.INPUT.MASK_FORMAT not in ("polygon", "bitmask"):
        raise UserError(f"INPUT.MASK_FORMAT: {cfg.INPUT.MASK_FORMAT!r} is neither polygon nor bitmask")
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise UserError(f"SOLVER.EMA_DECAY: {cfg.SOLVER.EMA_DECAY} is not from 0 (off) to below 1; 0.999 is usual")
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


def _check_images(cfg: CfgNode, args: Namespace) -> None:
    """Resizes, crops and flips an image, as those of the data will be."""
    with explained("INPUT: its augmentation"):
        for is_train in (False,) if args.eval_only else (True, False):
            CheckedMapper(cfg, is_train=is_train).augmentations(AugInput(np.zeros((96, 128, 3), np.uint8)))


def _check_data(cfg: CfgNode, args: Namespace) -> None:
    names = [*cfg.DATASETS.TEST] if args.eval_only else [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    key = "TEST" if args.eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        raise UserError(f"DATASETS.{key} is empty; name data sets, or give --train-json and --val-json")
    for name in map(str, names):
        check_registered(name)
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") not in EVALUATED:
            raise UserError(
                f"data set {name!r} is not evaluated as COCO is; run detectron2's own tools/train_net.py on it, "
                "with DETECTRON2_ENV_MODULE=se_detection.env"
            )
        for key, (entry, what) in _numbers(cfg).items():
            there = metadata.get(entry, ())
            number = reduce(getattr, key.split("."), cfg)
            if there and len(there) != number:
                raise UserError(f"{key}: {number} contradicts data set {name!r}, which has {len(there)} {what}")
        if cfg.MODEL.KEYPOINT_ON and not metadata.get("keypoint_names"):
            raise UserError(
                f"MODEL.KEYPOINT_ON: data set {name!r} names no keypoints; take one that does, such as "
                "keypoints_coco_2017_train, or set it to False"
            )
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and not args.eval_only:
        for name in cfg.DATASETS.TRAIN:
            if not MetadataCatalog.get(name).get("stuff_classes"):
                raise UserError(
                    f"data set {name!r} has no stuff, which a PanopticFPN learns too; take one that has, such as "
                    "coco_2017_train_panoptic_separated"
                )
    for name in cfg.DATASETS.TEST:
        _check_evaluated(cfg, name)


def _numbers(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """The keys that count what a data set's metadata names, the metadata's key, and a word for it."""
    numbers = {f"MODEL.{classes_node(cfg)}.NUM_CLASSES": ("thing_classes", "classes")}
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        numbers["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = ("stuff_classes", "classes of stuff")
    if cfg.MODEL.KEYPOINT_ON:
        numbers["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = ("keypoint_names", "keypoints")
    return numbers


def _check_evaluated(cfg: CfgNode, name: str) -> None:
    """Whether detectron2's evaluators find what they look for in a test set and in what is predicted on it."""
    metadata = MetadataCatalog.get(name)
    if metadata.evaluator_type == "coco_panoptic_seg":
        if cfg.MODEL.META_ARCHITECTURE in NOT_PANOPTIC:
            raise UserError(
                f"data set {name!r} is evaluated with stuff, of which a {cfg.MODEL.META_ARCHITECTURE} finds none; take "
                "one of things alone, such as coco_2017_val"
            )
        if find_spec("panopticapi") is None:
            raise UserError(
                f"data set {name!r} is evaluated by panopticapi, which is not there; install it: "
                "pip install --no-deps git+https://github.com/cocodataset/panopticapi.git"
            )
    if not cfg.MODEL.KEYPOINT_ON:
        return
    sigmas, names = cfg.TEST.KEYPOINT_OKS_SIGMAS, metadata.keypoint_names
    if sigmas and len(sigmas) != len(names):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas)} numbers, {name!r} {len(names)} keypoints; give one for each"
        )
    if not sigmas and tuple(names) != COCO_PERSON_KEYPOINT_NAMES:
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS is empty, which means COCO's for its 17 keypoints of persons, and {name!r} has "
            f"others; give {len(names)} numbers, COCO's are from 0.025 (eyes) to 0.107 (hips)"
        )


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
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise UserError(f"MODEL.WEIGHTS: there is no file {weights} (looked for in {Path(weights).absolute().parent})")
