"""Pre-trains the backbone of any config, SE or plain, as an image classifier, for MODEL.WEIGHTS of a detector."""

from argparse import ArgumentParser, Namespace

from .detectron2_flags import add_detectron2_flags
from .quick_checks import check_config, check_exist

EXAMPLES = """
examples:
  the paper's recipe, and its result under a detector:
    $ se-det pretrain --config-file Ablations/se_r50_position_pre --data imagenet/ --num-gpus 8 \\
        OUTPUT_DIR output/backbone
    $ se-det train --config-file Ablations/se_r50_position_pre --num-gpus 8 \\
        MODEL.WEIGHTS output/backbone/backbone.pth OUTPUT_DIR output/pre
  a small set of small images:
    $ se-det pretrain --config-file Toy/faster_rcnn_SE_R_18_FPN --data images.tar.gz --recipe modern \\
        PRETRAIN.EPOCHS 20 PRETRAIN.TRAIN_SIZE 64 PRETRAIN.TEST_SIZE 64 PRETRAIN.TEST_RESIZE 64 \\
        SOLVER.IMS_PER_BATCH 128 SOLVER.BASE_LR 0.1 OUTPUT_DIR output/backbone
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds detectron2's flags, the images and the recipe."""
    add_detectron2_flags(parser)
    add = parser.add_argument
    add("--data", required=True, help="folder with train/<class>/ and val/<class>/, or a .tar or .tar.gz of one")
    add("--recipe", default="paper", help="paper, modern, or a yaml file with PRETRAIN and SOLVER (default: paper)")
    add("--overwrite", action="store_true", help="replace the run in OUTPUT_DIR")
    parser.set_defaults(reset_predictor=False, allow_partial_backbone=False, fuse=False, bad_images=None)


def check(args: Namespace) -> None:
    """Checks that the config and the data exist."""
    check_config(args.config_file)
    check_exist("--data", [args.data], "data.not_found")


def run(args: Namespace) -> None:
    """Checks the command line, the config and the data, then starts the processes."""
    from se_detection.engine.launch import use_torchrun
    from se_detection.engine.train_and_evaluate import launch_run
    from se_detection.pretrain.pretrain_config import load_pretrain_config
    from se_detection.pretrain.pretrainer import Pretrainer

    torchrun = use_torchrun(args)
    launch_run(load_pretrain_config(args), args, torchrun=torchrun, trainer_class=Pretrainer)
