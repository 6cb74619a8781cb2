"""The config of a pre-training: a detector's backbone and a recipe."""

import sys
from argparse import Namespace
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.solver import build_lr_scheduler, build_optimizer
from PIL import Image

from ..config.buildable import check_memory, explained
from ..config.read_config import read_config
from ..data.image_files import describe_skipped
from ..engine.checks import check_machine, check_start
from ..errors import UserError, counted, printable
from ..model_zoo import find_config_file, get_recipe_file
from .classifier import build_classifier
from .image_folder import TRAIN, VAL, find_image_folder, register_image_folder
from .image_mapper import ImageMapper

# Defaults of a recipe; sizes are in pixels.
PRETRAIN = {
    "EPOCHS": 100.0,
    "STEP_EPOCHS": [],  # for SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR
    "WARMUP_EPOCHS": 0.0,
    "EVAL_EPOCHS": 1.0,  # between evaluations, each with a checkpoint
    "TRAIN_SIZE": 224,
    "TEST_SIZE": 224,
    "TEST_RESIZE": 256,  # the short side, before the centre crop
    "CROP_SCALE": [0.08, 1.0],  # of a training crop: its fraction of the image's area
    "COLOR_JITTER": 0.0,
    "AUTO_AUGMENT": "",  # name of a policy in timm
    "LABEL_SMOOTHING": 0.0,
    "MIXUP": 0.0,  # the alpha, 0 for none
    "CUTMIX": 0.0,
    "STOCHASTIC_DEPTH": 0.0,  # for the last block
    "BF16": False,  # the backbone in bfloat16, on a CPU too
}
LARGEST_SIZE = 4096
# detectron2's keys in iterations, which are computed from PRETRAIN's keys in epochs.
COMPUTED = {
    "SOLVER.MAX_ITER": "EPOCHS",
    "SOLVER.STEPS": "STEP_EPOCHS",
    "SOLVER.WARMUP_ITERS": "WARMUP_EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "EVAL_EPOCHS",
    "TEST.EVAL_PERIOD": "EVAL_EPOCHS",
}


def load_pretrain_config(args: Namespace) -> CfgNode:
    """The checked and frozen config of a pre-training; replaces an archive in `args.data` by its unpacked folder.

    `MODEL`, `INPUT.FORMAT` and `SEED` are from the detector's config, the rest from the recipe. FrozenBN becomes BN,
    and no stage is frozen.

    Args:
        args: the command line of `se-det pretrain`.

    Raises:
        UserError: an error in the config, the data or the flags; nothing is written before.
    """
    # The path also for detectron2, which logs the file.
    args.config_file = find_config_file(args.config_file)
    detector = read_config(args.config_file, base=config_base())
    cfg = config_base()
    cfg.MODEL, cfg.INPUT.FORMAT, cfg.SEED = detector.MODEL, detector.INPUT.FORMAT, detector.SEED
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.FREEZE_AT = 0
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.TIMM):
        if node.NORM == "FrozenBN":
            node.NORM = "BN"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.BEST_METRIC = "classification/top1"
    recipe = args.recipe if args.recipe.endswith((".yaml", ".yml")) else get_recipe_file(args.recipe)
    cfg = read_config(recipe, args.opts, base=cfg)
    for key, epochs_key in COMPUTED.items():
        if key in args.opts:
            raise UserError(
                "config.not_for_pretraining",
                f"{key}: it is computed from PRETRAIN's epochs; set PRETRAIN.{epochs_key} instead",
            )
    check_machine(cfg, args)
    _check_recipe(cfg, args.num_gpus * args.num_machines)
    args.data = str(find_image_folder(Path(args.data)))
    if skipped := register_image_folder(Path(args.data)):
        print(printable(describe_skipped(skipped)), file=sys.stderr)
    with explained("the recipe in PRETRAIN"):
        _count_epochs(cfg, len(DatasetCatalog.get(TRAIN)))
        for is_train in (True, False):
            ImageMapper.from_cfg(cfg, is_train=is_train).transform(Image.new("RGB", (64, 48)))
    check_start(cfg, args)
    with torch.device("meta"), explained(f"{cfg.MODEL.BACKBONE.NAME} with a classifier"):
        classifier = build_classifier(cfg, len(MetadataCatalog.get(TRAIN).thing_classes))
        build_lr_scheduler(cfg, build_optimizer(cfg, classifier))
    check_memory(classifier)
    cfg.freeze()
    return cfg


def config_base() -> CfgNode:
    """detectron2's defaults with `PRETRAIN`; not frozen."""
    cfg = get_cfg()
    cfg.PRETRAIN = CfgNode(dict(PRETRAIN))
    return cfg


def _check_recipe(cfg: CfgNode, processes: int) -> None:
    recipe = cfg.PRETRAIN
    if recipe.TRAIN_SIZE > LARGEST_SIZE or not recipe.TEST_SIZE <= recipe.TEST_RESIZE <= LARGEST_SIZE:
        raise UserError(
            "config.bad_value",
            f"PRETRAIN: TRAIN_SIZE {recipe.TRAIN_SIZE}, TEST_SIZE {recipe.TEST_SIZE} and TEST_RESIZE "
            f"{recipe.TEST_RESIZE}: sizes are at most {LARGEST_SIZE}, and TEST_RESIZE is at least TEST_SIZE",
        )
    if (recipe.MIXUP or recipe.CUTMIX) and cfg.SOLVER.IMS_PER_BATCH // processes % 2:
        raise UserError(
            "config.bad_value",
            f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} is odd for each of "
            f"{counted(processes, 'process', 'processes')}; PRETRAIN.MIXUP and CUTMIX mix images in pairs",
        )
    if cfg.SOLVER.AMP.ENABLED:
        raise UserError(
            "config.not_for_pretraining", "SOLVER.AMP.ENABLED is for detectors; set PRETRAIN.BF16 for mixed precision"
        )
    if cfg.SOLVER.BACKBONE_FREEZE_ITERS or cfg.SOLVER.BACKBONE_MULTIPLIER != 1:
        raise UserError(
            "config.not_for_pretraining",
            "SOLVER.BACKBONE_FREEZE_ITERS and BACKBONE_MULTIPLIER are for fine-tuning; remove them for pre-training",
        )


def _count_epochs(cfg: CfgNode, images: int) -> None:
    """Sets detectron2's keys in iterations from the recipe's epochs."""
    if cfg.SOLVER.IMS_PER_BATCH > images:
        raise UserError(
            "pretrain.too_few_images",
            f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} is more than {counted(images, 'image')} to train on; "
            "lower it, and SOLVER.BASE_LR in proportion",
        )
    per_epoch = images / cfg.SOLVER.IMS_PER_BATCH
    recipe = cfg.PRETRAIN
    cfg.SOLVER.MAX_ITER = max(1, round(recipe.EPOCHS * per_epoch))
    cfg.SOLVER.STEPS = tuple(round(step * per_epoch) for step in recipe.STEP_EPOCHS)
    cfg.SOLVER.WARMUP_ITERS = round(recipe.WARMUP_EPOCHS * per_epoch)
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = max(1, round(recipe.EVAL_EPOCHS * per_epoch))
