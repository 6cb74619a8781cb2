"""The config of a pre-training: a detector's backbone, and a recipe."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.solver import build_lr_scheduler, build_optimizer
from PIL import Image

from ..config.buildable import check_memory, explained
from ..config.read_config import read_config
from ..config.values import LARGEST_SIZE
from ..engine.checks import check_machine, check_weights
from ..errors import UserError
from ..model_zoo import get_recipe_file
from ..runs.run_folder import check_run_folder
from .classifier import Classifier
from .image_folder import TRAIN, VAL, find_image_folder, register_image_folder
from .image_mapper import ImageMapper

# A recipe's values; times are in epochs, sizes in pixels.
PRETRAIN = {
    "EPOCHS": 100.0,
    "STEP_EPOCHS": [],  # where SOLVER.LR_SCHEDULER_NAME is WarmupMultiStepLR
    "WARMUP_EPOCHS": 0.0,
    "EVAL_EPOCHS": 1.0,  # between two evaluations, each with a checkpoint
    "TRAIN_SIZE": 224,
    "TEST_SIZE": 224,
    "TEST_RESIZE": 256,  # the short side, of which the centre is taken
    "CROP_SCALE": [0.08, 1.0],  # the part of an image's area that a training crop has
    "COLOR_JITTER": 0.0,
    "AUTO_AUGMENT": "",  # timm's name of a policy
    "LABEL_SMOOTHING": 0.0,
    "MIXUP": 0.0,  # the alpha, 0 for none
    "CUTMIX": 0.0,
    "STOCHASTIC_DEPTH": 0.0,  # of the last block
    "BF16": False,  # the backbone computes in bfloat16, on CPUs too
}
COMPUTED = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")

EXAMPLE = """
examples:
  the paper's recipe, and its result under a detector:
    $ tools/pretrain.py --config-file configs/Ablations/se_r50_position_pre.yaml --data imagenet/ --num-gpus 8 \\
        OUTPUT_DIR output/pre_backbone
    $ tools/train_net.py --config-file configs/Ablations/se_r50_position_pre.yaml --num-gpus 8 \\
        MODEL.WEIGHTS output/pre_backbone/backbone.pth OUTPUT_DIR output/pre
  a small set of small images:
    $ tools/pretrain.py --config-file configs/Toy/faster_rcnn_SE_R_18_FPN.yaml --data pictures.tar.gz --recipe modern \\
        PRETRAIN.EPOCHS 20 PRETRAIN.TRAIN_SIZE 64 PRETRAIN.TEST_SIZE 64 PRETRAIN.TEST_RESIZE 64 \\
        SOLVER.IMS_PER_BATCH 128 SOLVER.BASE_LR 0.1 OUTPUT_DIR output/backbone
"""


def argument_parser() -> ArgumentParser:
    """detectron2's own parser with the flags of this tool."""
    parser: ArgumentParser = default_argument_parser(epilog=EXAMPLE)
    parser.add_argument(
        "--data", required=True, help="folder with train/<class>/ and val/<class>/, or a .tar or .tar.gz of one"
    )
    parser.add_argument(
        "--recipe", default="paper", help="paper, modern, or a yaml file with PRETRAIN and SOLVER (default: paper)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew in an OUTPUT_DIR that holds a run, removing its files"
    )
    parser.set_defaults(reset_predictor=False, allow_partial_backbone=False, fuse=False, bad_images=None)
    return parser


def load_pretrain_config(args: Namespace) -> CfgNode:
    """The frozen config of a pre-training; `args.data` becomes the folder, where it was an archive.

    Of the detector's config `MODEL`, `INPUT.FORMAT` and `SEED` are taken; the rest is the recipe's. Norms that are
    frozen in the detector learn here, and no stage is frozen.

    Args:
        args: of :func:`argument_parser`.

    Raises:
        UserError: whatever can be found wrong before anything is written.
    """
    detector = read_config(args.config_file, base=config_base())
    cfg = config_base()
    cfg.MODEL, cfg.INPUT.FORMAT, cfg.SEED = detector.MODEL, detector.INPUT.FORMAT, detector.SEED
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        cfg.MODEL.RESNETS.NORM = "BN"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.BEST_METRIC = "classification/top1"
    recipe = args.recipe if args.recipe.endswith((".yaml", ".yml")) else get_recipe_file(args.recipe)
    cfg = read_config(recipe, args.opts, base=cfg)
    for key in COMPUTED:
        if key in args.opts:
            raise UserError(f"{key}: it is computed from PRETRAIN's epochs; set PRETRAIN.{_nearest(key)} instead")
    check_machine(cfg, args)
    _check_recipe(cfg, args.num_gpus * args.num_machines)
    args.data = str(find_image_folder(Path(args.data)))
    register_image_folder(Path(args.data))
    _count_epochs(cfg, len(DatasetCatalog.get(TRAIN)))
    check_run_folder(cfg, args)
    check_weights(cfg, args)
    with explained("PRETRAIN.AUTO_AUGMENT"):
        ImageMapper(cfg, is_train=True).transform(Image.new("RGB", (64, 48)))
    with torch.device("meta"), explained(f"{cfg.MODEL.BACKBONE.NAME} with a classifier"):
        classifier = Classifier.from_cfg(cfg)
        build_lr_scheduler(cfg, build_optimizer(cfg, classifier))
    check_memory(classifier)
    cfg.freeze()
    return cfg


def config_base() -> CfgNode:
    """detectron2's defaults, and `PRETRAIN`'s; not frozen."""
    cfg = get_cfg()
    cfg.PRETRAIN = CfgNode(dict(PRETRAIN))
    return cfg


def _nearest(key: str) -> str:
    words = {"SOLVER.STEPS": "STEP_EPOCHS", "SOLVER.WARMUP_ITERS": "WARMUP_EPOCHS", "SOLVER.MAX_ITER": "EPOCHS"}
    return words.get(key, "EVAL_EPOCHS")


def _check_recipe(cfg: CfgNode, processes: int) -> None:
    recipe = cfg.PRETRAIN
    for key in ("EPOCHS", "EVAL_EPOCHS", "TRAIN_SIZE", "TEST_SIZE"):
        if recipe[key] <= 0:
            raise UserError(f"PRETRAIN.{key}: {recipe[key]} is not above 0")
    for key in ("TRAIN_SIZE", "TEST_RESIZE"):
        if recipe[key] > LARGEST_SIZE:
            raise UserError(f"PRETRAIN.{key}: {recipe[key]} is more than {LARGEST_SIZE}")
    for key in ("STEP_EPOCHS", "CROP_SCALE"):
        for item in recipe[key]:
            if isinstance(item, bool) or not isinstance(item, int | float) or item < 0:
                raise UserError(f"PRETRAIN.{key}: {item!r} is no number from 0 on")
    if len(recipe.CROP_SCALE) != 2 or not 0 < recipe.CROP_SCALE[0] <= recipe.CROP_SCALE[1] <= 1:
        raise UserError(f"PRETRAIN.CROP_SCALE: {recipe.CROP_SCALE} is not a least and a largest part of an image")
    if recipe.TEST_RESIZE < recipe.TEST_SIZE:
        raise UserError(f"PRETRAIN.TEST_RESIZE: {recipe.TEST_RESIZE} is below TEST_SIZE, {recipe.TEST_SIZE}")
    for key in ("LABEL_SMOOTHING", "STOCHASTIC_DEPTH"):
        if not 0 <= recipe[key] < 1:
            raise UserError(f"PRETRAIN.{key}: {recipe[key]} is not from 0 (off) to below 1")
    for key in ("MIXUP", "CUTMIX", "COLOR_JITTER", "WARMUP_EPOCHS"):
        if recipe[key] < 0:
            raise UserError(f"PRETRAIN.{key}: {recipe[key]} is negative")
    if (recipe.MIXUP or recipe.CUTMIX) and cfg.SOLVER.IMS_PER_BATCH // processes % 2:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} is odd for each of {processes} processes; "
            "PRETRAIN.MIXUP and CUTMIX mix images in pairs"
        )
    if cfg.SOLVER.AMP.ENABLED:
        raise UserError("SOLVER.AMP.ENABLED: that is for detectors; PRETRAIN.BF16 is mixed precision here")
    if cfg.SOLVER.BACKBONE_FREEZE_ITERS or cfg.SOLVER.BACKBONE_MULTIPLIER != 1:
        raise UserError(
            "SOLVER.BACKBONE_FREEZE_ITERS and BACKBONE_MULTIPLIER are for fine-tuning; here the backbone is trained"
        )


def _count_epochs(cfg: CfgNode, images: int) -> None:
    """Writes what detectron2 counts in iterations."""
    if cfg.SOLVER.IMS_PER_BATCH > images:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} is more than the {images} images to train on; "
            "set it lower, and SOLVER.BASE_LR in proportion"
        )
    epoch = images / cfg.SOLVER.IMS_PER_BATCH
    recipe = cfg.PRETRAIN
    cfg.SOLVER.MAX_ITER = max(1, round(recipe.EPOCHS * epoch))
    cfg.SOLVER.STEPS = tuple(round(step * epoch) for step in recipe.STEP_EPOCHS)
    cfg.SOLVER.WARMUP_ITERS = round(recipe.WARMUP_EPOCHS * epoch)
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.TEST.EVAL_PERIOD = max(1, round(recipe.EVAL_EPOCHS * epoch))
