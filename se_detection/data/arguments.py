"""The command line of tools/prepare_coco.py."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from ..model_zoo import get_config_file

DESCRIPTION = "Prepares COCO-format data: minival from val2014, a health check before training, a sample or a split."
MINIVAL = """
example:
  $ tools/prepare_coco.py minival --val2014 instances_val2014.json --val2017 instances_val2017.json
"""
CHECK = """
exit code: 0 without errors (of the corrected copy, with --fix), 1 with errors, 2 if the check could not be made

example:
  $ tools/prepare_coco.py check train.json train/ --against val.json val/ --fix train_fixed.json
"""
SAMPLE = """
example:
  $ tools/prepare_coco.py sample all.json --count 200 --output val.json --rest train.json
"""


def argument_parser() -> ArgumentParser:
    """Three commands, in `command`: `minival`, `check` and `sample`."""
    parser = ArgumentParser(
        description=DESCRIPTION, epilog=MINIVAL + CHECK + SAMPLE, formatter_class=RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    minival = commands.add_parser(
        "minival",
        description="Builds COCO 2014's minival and valminusminival, which detectron2's data sets of these names are.",
        epilog=MINIVAL,
        formatter_class=RawDescriptionHelpFormatter,
    )
    minival.add_argument("--val2014", type=Path, required=True, metavar="FILE", help="instances_val2014.json")
    minival.add_argument(
        "--val2017", type=Path, required=True, metavar="FILE", help="a COCO file of val2017, or a list of its image ids"
    )
    minival.add_argument("--output", type=Path, metavar="FOLDER", help="by default the folder of --val2014")

    check = commands.add_parser(
        "check",
        description="Finds all that stops or spoils training on a data set.",
        epilog=CHECK,
        formatter_class=RawDescriptionHelpFormatter,
    )
    check.add_argument("json_file", type=Path, metavar="JSON", help="annotations in COCO's format")
    check.add_argument("images", type=Path, metavar="IMAGES", help="the folder of their images")
    check.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="OTHER",
        help="annotations of other splits, which must share no image; give the folder of its images after each, to "
        "have the images compared and not only their names",
    )
    check.add_argument("--fix", type=Path, metavar="FILE", help="write a corrected copy, and say what was changed")
    check.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too, with every example")
    check.add_argument(
        "--config-file",
        metavar="FILE",
        default=get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x"),
        help="the detector whose anchors and test size boxes are compared with (default: Faster R-CNN R50-FPN)",
    )

    sample = commands.add_parser(
        "sample",
        description="Chooses images that show the same classes in the same proportions as all of them.",
        epilog=SAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    sample.add_argument("json_file", type=Path, metavar="JSON", help="annotations in COCO's format")
    sample.add_argument("--count", type=int, required=True, metavar="N", help="how many images")
    sample.add_argument("--output", type=Path, required=True, metavar="FILE", help="the sample's annotations")
    sample.add_argument("--rest", type=Path, metavar="FILE", help="write those of all other images there")
    sample.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another one gives another sample (default: 0)"
    )
    for command in (minival, check, sample):
        command.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    return parser
