"""The command line of tools/train_net.py: detectron2's flags, and a person's own data."""

from argparse import ArgumentParser

from detectron2.engine import default_argument_parser

EXAMPLE = """
examples:
  plain and SE on your own COCO-format data, then their comparison:
    $ tools/train_net.py --config-file configs/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.yaml \\
        --train-json train.json --train-images train/ --val-json val.json --val-images val/ OUTPUT_DIR output/se
    $ tools/compare.py --baseline output/plain --candidate output/se
  evaluate a run again:
    $ tools/train_net.py --eval-only --resume --config-file output/se/config.yaml \\
        --val-json val.json --val-images val/ OUTPUT_DIR output/se
  two processes, on GPUs or on the CPU:
    $ tools/train_net.py --num-gpus 2 --config-file configs/Toy/faster_rcnn_SE_R_18_FPN.yaml
"""


def argument_parser() -> ArgumentParser:
    """detectron2's own parser with the flags that this project adds."""
    parser: ArgumentParser = default_argument_parser(epilog=EXAMPLE)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew in an OUTPUT_DIR that holds a run, removing that run's files",
    )
    parser.add_argument(
        "--reset-predictor",
        action="store_true",
        help="start the last layers afresh when MODEL.WEIGHTS is a detector trained on other classes",
    )
    parser.add_argument(
        "--allow-partial-backbone",
        "--allow-partial-trunk",
        action="store_true",
        help="load what fits of MODEL.WEIGHTS where the backbone differs, and start the rest of it afresh",
    )
    parser.add_argument(
        "--fuse",
        action="store_true",
        help="with --eval-only: evaluate the detector as se_detection.export.fuse_for_inference makes it faster",
    )
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="train without the images that are missing, can't be decoded or have another size than annotated, and "
        "list them in OUTPUT_DIR/bad_images.json; by default nothing is trained if there are any",
    )
    data = parser.add_argument_group("your own COCO-format data (instead of DATASETS.TRAIN and DATASETS.TEST)")
    for split in ("train", "val"):
        data.add_argument(
            f"--{split}-json", action="append", default=[], metavar="FILE", help=f"{split} annotations; may be repeated"
        )
        data.add_argument(
            f"--{split}-images",
            action="append",
            default=[],
            metavar="DIR",
            help=f"folder of the images of --{split}-json",
        )
    return parser
