"""Trains or evaluates a detector, with the flags of detectron2's own tools/train_net.py."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup

from .detectron2_flags import add_detectron2_flags
from .quick_checks import check_config, check_exist, check_weights

EXAMPLES = """
examples:
  plain and SE on your own data, then their comparison:
    $ se-det train --config-file COCO-Detection/faster_rcnn_R_50_FPN_1x --train-data my_data/ OUTPUT_DIR output/plain
    $ se-det train --config-file COCO-Detection/faster_rcnn_SE_R_50_FPN_1x \\
        --train-json train.json --train-images train/ --val-json val.json --val-images val/ OUTPUT_DIR output/se
    $ se-det compare --baseline output/plain --candidate output/se
  evaluate a run again:
    $ se-det train --eval-only --resume --config-file output/se/config.yaml \\
        --val-json val.json --val-images val/ OUTPUT_DIR output/se
  two processes, on GPUs or on the CPU:
    $ se-det train --num-gpus 2 --config-file Toy/faster_rcnn_SE_R_18_FPN
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds detectron2's flags and those of this project."""
    add_detectron2_flags(parser)
    add = parser.add_argument
    add("--overwrite", action="store_true", help="replace the run in OUTPUT_DIR")
    add("--reset-predictor", action="store_true", help="initialize the last layers, if MODEL.WEIGHTS has other classes")
    add(
        "--allow-partial-backbone",
        "--allow-partial-trunk",
        action="store_true",
        help="load only the tensors of MODEL.WEIGHTS that fit the backbone",
    )
    add("--fuse", action="store_true", help="with --eval-only: evaluate the detector after fuse_for_inference")
    add(
        "--skip-bad-images",
        action="store_true",
        help="skip bad training images, and list them in OUTPUT_DIR/bad_images.json",
    )
    add_data_flags(parser.add_argument_group("your own data (instead of DATASETS.TRAIN and DATASETS.TEST)"))


def add_data_flags(group: _ArgumentGroup) -> None:
    """Adds the folders, or the annotation files and image folders, of both splits."""
    add_folder_flags(group)
    for split in ("train", "val"):
        json = f"{split} annotations in COCO format; may be repeated"
        images = f"the folder of the images of --{split}-json"
        group.add_argument(f"--{split}-json", action="append", default=[], metavar="FILE", help=json)
        group.add_argument(f"--{split}-images", action="append", default=[], metavar="DIR", help=images)


def add_folder_flags(group: _ArgumentGroup) -> None:
    """Adds the folders of both splits."""
    text = "a folder in the format of COCO, YOLO or Pascal VOC, such as an export of Roboflow, CVAT or Label Studio"
    group.add_argument("--train-data", metavar="FOLDER", help=text)
    group.add_argument("--val-data", metavar="FOLDER", help="(default: the other part of --train-data)")


def check(args: Namespace) -> None:
    """Checks that the config, the data and the weights exist."""
    check_config(args.config_file)
    check_data_paths(args)
    check_weights(args.opts)


def check_data_paths(args: Namespace) -> None:
    """Checks that the files and folders of :func:`add_data_flags` exist."""
    for split in ("train", "val"):
        check_exist(f"--{split}-data", [vars(args)[f"{split}_data"]], "data.no_folder")
        check_exist(f"--{split}-json", vars(args)[f"{split}_json"], "file.unreadable")
        check_exist(f"--{split}-images", vars(args)[f"{split}_images"], "data.no_folder")


def run(args: Namespace) -> None:
    """Checks the command line, the config and the data, then starts the processes."""
    from se_detection.engine.checks import load_config
    from se_detection.engine.launch import use_torchrun
    from se_detection.engine.train_and_evaluate import launch_run

    torchrun = use_torchrun(args)
    launch_run(load_config(args), args, torchrun=torchrun)
