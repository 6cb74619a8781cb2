"""Checks before a training or an evaluation: machine, config, data, output folder and weights."""

import os
from argparse import Namespace
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.engine import default_argument_parser

from ..checkpoint.timm_handler import find_model_weights
from ..config.buildable import check_backbone, check_model
from ..config.defaults import classes_node, flatten
from ..config.read_config import read_config
from ..config.timm_config import has_timm_backbone, norm_and_freeze_keys, which_network
from ..data.augmentations import check_augmentations
from ..data.coco_sets import check_registered, name_failing_dataset
from ..data.masks_and_keypoints import check_flips, flip_pairs
from ..errors import UserError, counted
from ..evaluation.coco_evaluator import EVALUATED
from ..files import check_folder
from ..model_zoo import find_config_file
from ..runs.checkpoints import newest_checkpoint
from ..runs.record import class_names, read_record
from ..runs.run_folder import INFERENCE, result_files, training_files
from .loggers import check_loggers
from .optimizer import check_optimizer
from .run_log import without_warnings
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
    args.config_file = find_config_file(args.config_file)
    cfg = read_config(args.config_file, args.opts)
    check_machine(cfg, args)
    check_backbone(cfg)
    use_user_data(cfg, args)
    check_data(cfg, eval_only=args.eval_only)
    if args.fuse and not args.eval_only:
        raise UserError("run.contradicting_flags", "--fuse: it is for evaluation only; add --eval-only")
    with without_warnings():
        check_model(cfg)
    check_start(cfg, args)
    cfg.freeze()
    return cfg


def available_device(cfg: CfgNode) -> str:
    """`MODEL.DEVICE`, or cpu if there is no GPU."""
    return cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu"


def check_machine(cfg: CfgNode, args: Namespace) -> None:
    """Sets `MODEL.DEVICE` to cpu if there is no GPU, and checks the processes of a command line.

    Raises:
        UserError: the device is not available, or the processes fit neither the machine nor the config.
    """
    if "MODEL.DEVICE" in args.opts and cfg.MODEL.DEVICE != "cpu" and not torch.cuda.is_available():
        raise UserError("run.no_gpu", f"MODEL.DEVICE: {cfg.MODEL.DEVICE} is not available; omit it to use the CPU")
    cfg.MODEL.DEVICE = available_device(cfg)
    if cfg.MODEL.DEVICE != "cpu" and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            "run.no_gpu",
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}; give at most as many",
        )
    if min(args.num_gpus, args.num_machines) < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            "run.bad_processes",
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank {args.machine_rank}: "
            "give at least one GPU (or process) and one machine, and a rank from 0 to the number of machines less 1",
        )
    if args.num_machines > 1 and args.dist_url in ("auto", default_argument_parser().get_default("dist_url")):
        raise UserError(
            "run.no_address",
            f"--dist-url {args.dist_url}: it is for one machine; give the address of the first, such as "
            "tcp://10.0.0.1:29500",
        )
    check_settings(cfg, args.num_gpus * args.num_machines)


def check_settings(cfg: CfgNode, processes: int) -> None:
    """Checks the config's device and solver for a number of processes.

    Raises:
        UserError: settings contradict each other, or the device or the processes don't support them.
    """
    on_cpu, norm_key, solver = cfg.MODEL.DEVICE == "cpu", norm_and_freeze_keys(cfg)[0], cfg.SOLVER
    norm = flatten(cfg)[norm_key]
    images, reference = solver.IMS_PER_BATCH, solver.REFERENCE_WORLD_SIZE
    key, shares = ("REFERENCE_WORLD_SIZE", reference) if reference else ("IMS_PER_BATCH", processes)
    for code, problem, wrong in (
        ("run.no_gpu", "SOLVER.AMP.ENABLED needs a GPU; set it to False", on_cpu and solver.AMP.ENABLED),
        ("run.no_gpu", f"{norm_key}: SyncBN needs a GPU; set it to BN", on_cpu and norm == "SyncBN"),
        (
            "config.bad_value",
            f"SOLVER.EMA_DECAY: {solver.EMA_DECAY} is not from 0 (off) to below 1; 0.999 is usual",
            not 0 <= solver.EMA_DECAY < 1,
        ),
        (
            "config.bad_value",
            f"MODEL.RESNETS.DROP_BLOCK: {cfg.MODEL.RESNETS.DROP_BLOCK} is not from 0 to below 1; choose such a rate",
            not 0 <= cfg.MODEL.RESNETS.DROP_BLOCK < 1,
        ),
        (
            "config.contradiction",
            "SOLVER.EMA_DECAY: TEST.PRECISE_BN updates the norms of the trained weights, and their average is "
            "evaluated; use only one of the two",
            solver.EMA_DECAY and cfg.TEST.PRECISE_BN.ENABLED,
        ),
        (
            "config.batch_size",
            f"SOLVER.{key}: {counted(shares, 'process', 'processes')} can't share a batch of "
            f"{counted(images, 'image')} equally; set IMS_PER_BATCH to a multiple",
            shares < 0 or images % shares,
        ),
    ):
        if wrong:
            raise UserError(code, problem)
    check_optimizer(cfg)
    check_loggers(cfg)
    check_augmentations(cfg)


def check_data(cfg: CfgNode, *, eval_only: bool = False, coco_evaluation: bool = True) -> None:
    """Checks that the data sets exist and fit the config.

    Args:
        coco_evaluation: whether this project's evaluators are used.

    Raises:
        UserError: a data set is missing, can't be evaluated, or has other numbers of classes or keypoints.
    """
    key = "TEST" if eval_only else "TRAIN"
    if not cfg.DATASETS[key]:
        raise UserError("data.no_sets", f"DATASETS.{key} is empty; name data sets, or give --train-json and --val-json")
    trained = () if eval_only else cfg.DATASETS.TRAIN
    for name in map(str, (*trained, *cfg.DATASETS.TEST)):
        check_registered(name)
        evaluated = coco_evaluation and name in cfg.DATASETS.TEST
        if evaluated:
            _check_evaluator(cfg, name)
        metadata = _known_metadata(name)
        _check_counts(cfg, name, metadata)
        if name in trained and cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and not metadata.get("stuff_classes"):
            raise UserError(
                "data.no_stuff",
                f"data set {name!r} has no stuff, which a PanopticFPN needs; use one that has, such as "
                "coco_2017_train_panoptic_separated",
            )
        if evaluated and cfg.MODEL.KEYPOINT_ON:
            _check_sigmas(cfg, name, metadata.keypoint_names)
        if name in trained and cfg.MODEL.KEYPOINT_ON and cfg.INPUT.RANDOM_FLIP == "horizontal":
            names, given = metadata.keypoint_names, cfg.INPUT.KEYPOINT_FLIP_MAP
            # A flip map that was set in Python is the user's.
            if given or metadata.get("keypoint_flip_map") == flip_pairs(names):
                check_flips(metadata.get("json_file", name), names, given)


def _check_evaluator(cfg: CfgNode, name: str) -> None:
    """Checks that detectron2's evaluators can evaluate this detector on a test set."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATED:
        raise UserError(
            "data.no_evaluator",
            f"data set {name!r} has evaluator_type {kind!r}, and {' and '.join(EVALUATED)} are supported; set it in "
            "MetadataCatalog, override Trainer.build_evaluator, or use detectron2's own tools/train_net.py with "
            "DETECTRON2_ENV_MODULE=se_detection.env",
        )
    if kind != "coco_panoptic_seg":
        return
    if cfg.MODEL.META_ARCHITECTURE in NOT_PANOPTIC:
        raise UserError(
            "data.needs_stuff",
            f"data set {name!r} is evaluated with stuff, which a {cfg.MODEL.META_ARCHITECTURE} does not detect; "
            "use a set of things only, such as coco_2017_val",
        )
    if find_spec("panopticapi") is None:
        raise UserError(
            "run.no_panopticapi",
            f"data set {name!r} is evaluated by panopticapi, which is not installed; install it: "
            "pip install --no-deps git+https://github.com/cocodataset/panopticapi.git",
        )


def _known_metadata(name: str) -> Metadata:
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") and metadata.get("thing_classes") is None:
        # detectron2 adds the classes to the metadata when it loads the annotations.
        with name_failing_dataset([name]):
            DatasetCatalog.get(name)
    return metadata


def _check_counts(cfg: CfgNode, name: str, metadata: Metadata) -> None:
    """Checks the config keys that count classes or keypoints."""
    counts: dict[str, tuple[str, ...]] = {
        f"MODEL.{classes_node(cfg)}.NUM_CLASSES": ("thing_classes", "class", "classes")
    }
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        counts["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = ("stuff_classes", "stuff class", "stuff classes")
    if cfg.MODEL.KEYPOINT_ON:
        if not metadata.get("keypoint_names"):
            raise UserError(
                "data.no_keypoint_names",
                f"MODEL.KEYPOINT_ON: data set {name!r} has no keypoint names; use one that has, such as "
                "keypoints_coco_2017_train, or set it to False",
            )
        counts["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] = ("keypoint_names", "keypoint")
    for key, (entry, *noun) in counts.items():
        count = len(metadata.get(entry) or ())
        number = reduce(getattr, key.split("."), cfg)
        if count and count != number:
            raise UserError(
                "config.contradicts_data",
                f"{key}: {number} contradicts data set {name!r}, which has {counted(count, *noun)}; set it to {count}",
            )


def _check_sigmas(cfg: CfgNode, name: str, keypoints: list[str]) -> None:
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    if len(sigmas) != len(keypoints) and (sigmas or tuple(keypoints) != COCO_PERSON_KEYPOINT_NAMES):
        raise UserError(
            "config.keypoint_sigmas",
            f"TEST.KEYPOINT_OKS_SIGMAS has {counted(len(sigmas), 'number')}, and {name!r} has "
            f"{counted(len(keypoints), 'keypoint')}; give one for each (COCO's are from 0.025 for eyes to 0.107 for "
            "hips; empty means those of its 17 keypoints)",
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
        raise UserError("output.no_folder", "OUTPUT_DIR is empty; name a folder for the run")
    check_folder(output / INFERENCE)
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError("output.not_writable", f"OUTPUT_DIR: {existing} can't be written to; choose another")
    if resume and overwrite:
        raise UserError(
            "run.contradicting_flags",
            "--resume (resume_or_load's default) continues a run and --overwrite replaces it: give one of them",
        )
    if resume:
        _check_same_run(cfg, output)
        return
    trained, evaluated = training_files(output), result_files(output)
    if overwrite and not eval_only and Path(cfg.MODEL.WEIGHTS).absolute() in [path.absolute() for path in trained]:
        raise UserError(
            "output.is_input",
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is in the run that --overwrite replaces; choose another OUTPUT_DIR",
        )
    found = evaluated if eval_only else [*trained, *evaluated]
    if found and main_machine and not overwrite:
        what = "an evaluation" if eval_only else "a run"
        again = "evaluate its last checkpoint (--resume)" if eval_only else "resume it (--resume; resume_or_load(True))"
        raise UserError(
            "output.exists",
            f"OUTPUT_DIR: {output} holds {what} already ({found[0].name}); {again}, replace it (--overwrite; "
            "Trainer(cfg, overwrite=True)), or choose another OUTPUT_DIR",
        )


def _check_same_run(cfg: CfgNode, output: Path) -> None:
    """Checks that a resumed run has the backbone and the classes of its record."""
    record = read_record(output)
    now = {
        "backbone": cfg.MODEL.BACKBONE.NAME,
        **which_network(cfg),
        "classes": class_names(cfg.DATASETS.TEST),
    }
    for key, value in now.items():
        if value and record.get(key, value) != value:
            raise UserError(
                "run.other_config",
                f"--resume: the run in {output} has {key} {record[key]}, and now it is {value}; use the config and "
                "data of that run, or choose another OUTPUT_DIR",
            )


def check_start(cfg: CfgNode, args: Namespace) -> None:
    """Checks the output folder, and that the checkpoint to resume from, or `MODEL.WEIGHTS`, exists; downloads these.

    Args:
        args: the arguments of the train command.

    Raises:
        UserError: it does not exist, or see :func:`check_run_folder`.
    """
    # The other machines may not see the checkpoints.
    main_machine = args.machine_rank == 0
    check_run_folder(
        cfg, resume=args.resume, overwrite=args.overwrite, eval_only=args.eval_only, main_machine=main_machine
    )
    if args.resume and (not main_machine or newest_checkpoint(Path(cfg.OUTPUT_DIR))[0]):
        return
    if args.eval_only and (args.resume or not cfg.MODEL.WEIGHTS):
        reason = f"{cfg.OUTPUT_DIR} has no checkpoint to evaluate" if args.resume else "there are no weights"
        raise UserError(
            "weights.none", f"--eval-only: {reason}; give MODEL.WEIGHTS, or --resume and the OUTPUT_DIR of a run"
        )
    if cfg.MODEL.WEIGHTS:
        find_model_weights(cfg.MODEL.WEIGHTS, for_timm=has_timm_backbone(cfg))
