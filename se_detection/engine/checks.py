"""Checks before a training or an evaluation: machine, config, data, output folder and weights."""

import os
from argparse import Namespace
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.data.transforms import AugInput

from ..checkpoint.timm_handler import PREFIX, source_of
from ..config.buildable import check_backbone, check_model, explained
from ..config.defaults import classes_node
from ..config.read_config import read_config
from ..data.coco_sets import check_registered, name_failing_dataset
from ..data.mapper import CheckedMapper
from ..errors import UserError
from ..evaluation.coco_evaluator import EVALUATED
from ..model_zoo import find_config_file
from ..runs.checkpoints import newest_checkpoint
from ..runs.record import class_names, read_record
from ..runs.run_folder import INFERENCE, result_files, training_files
from .user_data import use_user_data

# Architectures without a semantic segmentation, or without boxes.
NOT_PANOPTIC = ("GeneralizedRCNN", "RetinaNet", "SemanticSegmentor")


def load_config(args: Namespace) -> CfgNode:
    """The checked and frozen config of a command line; nothing is written before.

    Args:
        args: the arguments of the train command.

    Raises:
        UserError: a check below fails.
    """
    # The path also for detectron2, which logs the file.
    args.config_file = config_file(args.config_file)
    cfg = read_config(args.config_file, args.opts)
    check_machine(cfg, args)
    check_backbone(cfg)
    use_user_data(cfg, args)
    check_data(cfg, eval_only=args.eval_only)
    main_machine = args.machine_rank == 0
    check_run_folder(
        cfg, resume=args.resume, overwrite=args.overwrite, eval_only=args.eval_only, main_machine=main_machine
    )
    check_start(cfg, resume=args.resume, eval_only=args.eval_only, main_machine=main_machine)
    if args.fuse and not args.eval_only:
        raise UserError("--fuse: it makes a detector faster for evaluation only; add --eval-only")
    check_model(cfg)
    check_augmentation(cfg, train=not args.eval_only)
    cfg.freeze()
    return cfg


def config_file(name_or_path: str) -> str:
    """The path of the config that --config-file names.

    Raises:
        UserError: it is neither a file nor the name of a config.
    """
    if not name_or_path:
        raise UserError("--config-file is missing; give a file, or the name of a config (MODEL_ZOO.md)")
    try:
        return find_config_file(name_or_path)
    except UserError as error:
        raise UserError(f"--config-file {name_or_path}: there is no such file, and {error}") from error


def on_available_device(cfg: CfgNode) -> CfgNode:
    """The config, with `MODEL.DEVICE` cpu (in a copy) if there is no GPU."""
    if torch.cuda.is_available() or cfg.MODEL.DEVICE == "cpu":
        return cfg
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if frozen:
        cfg.freeze()
    return cfg


def check_machine(cfg: CfgNode, args: Namespace) -> None:
    """Sets `MODEL.DEVICE` to cpu if there is no GPU, and checks the processes of a command line.

    Raises:
        UserError: the device is not available, or the processes fit neither the machine nor the config.
    """
    if "MODEL.DEVICE" in args.opts and cfg.MODEL.DEVICE != "cpu" and not torch.cuda.is_available():
        raise UserError(f"MODEL.DEVICE: {cfg.MODEL.DEVICE} is not available; omit it to use the CPU")
    cfg.MODEL.DEVICE = on_available_device(cfg).MODEL.DEVICE
    if cfg.MODEL.DEVICE != "cpu" and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}; give at most as many"
        )
    if min(args.num_gpus, args.num_machines) < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
            "give at least one GPU (or process) and one machine, and a rank from 0 to the number of machines less 1"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError(
            "--dist-url auto: it is for one machine; give the address of the first, such as tcp://10.0.0.1:29500"
        )
    check_settings(cfg, args.num_gpus * args.num_machines)


def check_settings(cfg: CfgNode, processes: int) -> None:
    """Checks the config's device, input and solver for a number of processes.

    Raises:
        UserError: settings contradict each other, or the device or the processes don't support them.
    """
    if cfg.MODEL.DEVICE == "cpu":
        if cfg.SOLVER.AMP.ENABLED:
            raise UserError("SOLVER.AMP.ENABLED: detectron2's mixed precision needs a GPU; set it to False")
        if cfg.MODEL.RESNETS.NORM == "SyncBN":
            raise UserError("MODEL.RESNETS.NORM: SyncBN needs a GPU; set it to BN or GN")
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT: {cfg.INPUT.FORMAT!r} is neither RGB nor BGR; use one of them")
    if cfg.INPUT.MASK_FORMAT not in ("polygon", "bitmask"):
        raise UserError(f"INPUT.MASK_FORMAT: {cfg.INPUT.MASK_FORMAT!r} is neither polygon nor bitmask; use one of them")
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise UserError(f"SOLVER.EMA_DECAY: {cfg.SOLVER.EMA_DECAY} is not from 0 (off) to below 1; 0.999 is usual")
    if cfg.SOLVER.EMA_DECAY and cfg.TEST.PRECISE_BN.ENABLED:
        raise UserError(
            "SOLVER.EMA_DECAY: TEST.PRECISE_BN would update the norms of the trained weights, not those of the average "
            "that is evaluated; use only one of the two"
        )
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference and images % reference):
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE: SOLVER.IMS_PER_BATCH {images} can't be shared equally by {reference} "
            "processes; use a divisor of it"
        )
    if images % processes and not reference:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {images} can't be shared equally by {processes} processes; use a multiple of "
            f"{processes}"
        )


def check_data(cfg: CfgNode, *, eval_only: bool = False, coco_evaluation: bool = True) -> None:
    """Checks that the data sets exist and fit the config.

    Args:
        coco_evaluation: whether this project's evaluators are used.

    Raises:
        UserError: a data set is missing, can't be evaluated, or has other numbers of classes or keypoints.
    """
    key = "TEST" if eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        raise UserError(f"DATASETS.{key} is empty; name data sets, or give --train-json and --val-json")
    names = list(map(str, cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    for name in names:
        check_registered(name)
        if coco_evaluation and name in cfg.DATASETS.TEST:
            _check_evaluator(name)
    for name in names:
        metadata = _known_metadata(name)
        for key, (entry, what) in _counts(cfg).items():
            count = len(metadata.get(entry) or ())
            number = reduce(getattr, key.split("."), cfg)
            if count and count != number:
                raise UserError(
                    f"{key}: {number} contradicts data set {name!r}, which has {count} {what}; set it to {count}"
                )
        if cfg.MODEL.KEYPOINT_ON and not metadata.get("keypoint_names"):
            raise UserError(
                f"MODEL.KEYPOINT_ON: data set {name!r} has no keypoint names; use one that has, such as "
                "keypoints_coco_2017_train, or set it to False"
            )
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and not eval_only:
        for name in cfg.DATASETS.TRAIN:
            if not MetadataCatalog.get(name).get("stuff_classes"):
                raise UserError(
                    f"data set {name!r} has no stuff, which a PanopticFPN needs; use one that has, such as "
                    "coco_2017_train_panoptic_separated"
                )
    for name in cfg.DATASETS.TEST if coco_evaluation else ():
        _check_evaluated(cfg, name)


def _check_evaluator(name: str) -> None:
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATED:
        raise UserError(
            f"data set {name!r} has evaluator_type {kind!r}, and {' and '.join(EVALUATED)} are supported; set it in "
            "MetadataCatalog, override Trainer.build_evaluator, or use detectron2's own tools/train_net.py with "
            "DETECTRON2_ENV_MODULE=se_detection.env"
        )


def _known_metadata(name: str) -> Metadata:
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") and metadata.get("thing_classes") is None:
        # detectron2 adds the classes to the metadata when it loads the annotations.
        with name_failing_dataset([name]):
            DatasetCatalog.get(name)
    return metadata


def _counts(cfg: CfgNode) -> dict[str, tuple[str, str]]:
    """The config keys that count classes or keypoints, with the metadata key that lists them, and a word for them."""
    counts = {f"MODEL.{classes_node(cfg)}.NUM_CLASSES": ("thing_classes", "classes")}
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        counts["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = ("stuff_classes", "classes of stuff")
    if cfg.MODEL.KEYPOINT_ON:
        counts["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = ("keypoint_names", "keypoints")
    return counts


def _check_evaluated(cfg: CfgNode, name: str) -> None:
    """Checks that detectron2's evaluators can evaluate this detector on a test set."""
    metadata = MetadataCatalog.get(name)
    if metadata.evaluator_type == "coco_panoptic_seg":
        if cfg.MODEL.META_ARCHITECTURE in NOT_PANOPTIC:
            raise UserError(
                f"data set {name!r} is evaluated with stuff, which a {cfg.MODEL.META_ARCHITECTURE} does not detect; "
                "use a set of things only, such as coco_2017_val"
            )
        if find_spec("panopticapi") is None:
            raise UserError(
                f"data set {name!r} is evaluated by panopticapi, which is not installed; install it: "
                "pip install --no-deps git+https://github.com/cocodataset/panopticapi.git"
            )
    if not cfg.MODEL.KEYPOINT_ON:
        return
    sigmas, names = cfg.TEST.KEYPOINT_OKS_SIGMAS, metadata.keypoint_names
    if sigmas and len(sigmas) != len(names):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas)} numbers, and {name!r} has {len(names)} keypoints; give "
            "one for each"
        )
    if not sigmas and tuple(names) != COCO_PERSON_KEYPOINT_NAMES:
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS is empty, which means COCO's for the 17 keypoints of a person, and {name!r} has "
            f"others; give {len(names)} numbers (COCO's are from 0.025 for eyes to 0.107 for hips)"
        )


def check_run_folder(
    cfg: CfgNode,
    *,
    resume: bool = False,
    overwrite: bool = False,
    eval_only: bool = False,
    main_machine: bool = True,
) -> None:
    """Checks that a run may write into `OUTPUT_DIR` without replacing another one.

    Args:
        main_machine: whether this machine writes the run. Others may find new files of the main machine in the folder.

    Raises:
        UserError: the folder can't be written to, or holds a run that is not to be resumed or overwritten.
    """
    output = Path(cfg.OUTPUT_DIR)
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty; name a folder for the run")
    existing = next(path for path in (output, *output.absolute().parents) if path.exists() or path.is_symlink())
    for path in (existing, output / INFERENCE):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise UserError(f"OUTPUT_DIR: {path} is not a folder; choose another")
    if not os.access(existing, os.W_OK):
        raise UserError(f"OUTPUT_DIR: {existing} can't be written to; choose another")
    if resume and overwrite:
        raise UserError(
            "--resume (resume_or_load's default) continues a run and --overwrite replaces it: give one of them"
        )
    if resume:
        _check_same_run(cfg, output)
        return
    trained, evaluated = training_files(output), result_files(output)
    if overwrite and not eval_only and Path(cfg.MODEL.WEIGHTS).absolute() in [path.absolute() for path in trained]:
        raise UserError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is in the run that --overwrite replaces; choose another OUTPUT_DIR"
        )
    found = evaluated if eval_only else [*trained, *evaluated]
    if found and main_machine and not overwrite:
        what = "an evaluation" if eval_only else "a run"
        again = "evaluate its last checkpoint (--resume)" if eval_only else "resume it (--resume; resume_or_load(True))"
        raise UserError(
            f"OUTPUT_DIR: {output} holds {what} already ({found[0].name}); {again}, replace it (--overwrite; "
            "Trainer(cfg, overwrite=True)), or choose another OUTPUT_DIR"
        )


def _check_same_run(cfg: CfgNode, output: Path) -> None:
    """Checks that a resumed run has the backbone and the classes of its record."""
    record = read_record(output)
    now = {
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "depth": cfg.MODEL.RESNETS.DEPTH,
        "classes": class_names(cfg.DATASETS.TEST),
    }
    for key, value in now.items():
        if value and record.get(key, value) != value:
            raise UserError(
                f"--resume: the run in {output} has {key} {record[key]}, and now it is {value}; use the config and "
                "data of that run, or choose another OUTPUT_DIR"
            )


def check_start(cfg: CfgNode, *, resume: bool = False, eval_only: bool = False, main_machine: bool = True) -> None:
    """Checks that the checkpoint to resume from, or `MODEL.WEIGHTS`, exists.

    Args:
        main_machine: whether this machine has the checkpoints; the others may not see them.

    Raises:
        UserError: it does not exist.
    """
    if resume and (not main_machine or newest_checkpoint(Path(cfg.OUTPUT_DIR))[0]):
        return
    if eval_only and resume:
        raise UserError(f"--resume: {cfg.OUTPUT_DIR} has no checkpoint to evaluate; give MODEL.WEIGHTS instead")
    if eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only: give the detector's MODEL.WEIGHTS, or --resume and the OUTPUT_DIR of a run")
    check_weights_file(cfg.MODEL.WEIGHTS)


def check_weights_file(weights: str) -> None:
    """Checks that `MODEL.WEIGHTS` is empty, a URL, or a file that exists.

    Raises:
        UserError: the file is missing, or timm's name is unknown.
    """
    if weights.startswith(PREFIX):
        source_of(weights.removeprefix(PREFIX))
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise UserError(f"MODEL.WEIGHTS: there is no file {weights} (looked for in {Path(weights).absolute().parent})")


def check_augmentation(cfg: CfgNode, *, train: bool = True) -> None:
    """Checks that the config's resizing, cropping and flipping work, on one image.

    Raises:
        UserError: detectron2 can't build or apply one of them.
    """
    with explained("INPUT: its augmentation"):
        for is_train in (True, False) if train else (False,):
            CheckedMapper(cfg, is_train=is_train).augmentations(AugInput(np.zeros((96, 128, 3), np.uint8)))
