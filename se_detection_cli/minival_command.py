"""Builds COCO 2014's minival and valminusminival, which detectron2's data sets of these names need."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .quick_checks import check_exist

EXAMPLES = """
example:
  $ se-det minival --val2014 instances_val2014.json --val2017 instances_val2017.json
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds COCO's files and the output folder."""
    add = parser.add_argument
    add("--val2014", type=Path, required=True, metavar="FILE", help="instances_val2014.json")
    add("--val2017", type=Path, required=True, metavar="FILE", help="COCO file of val2017, or list of its image ids")
    add("--output", type=Path, metavar="FOLDER", help="by default the folder of --val2014")
    add("--overwrite", action="store_true", help="replace existing files")


def check(args: Namespace) -> None:
    """Checks that the files exist."""
    check_exist("--val2014", [args.val2014], "file.unreadable")
    check_exist("--val2017", [args.val2017], "file.unreadable")


def run(args: Namespace) -> None:
    """Writes both files."""
    from se_detection.data.minival import make_minival

    folder = args.output or args.val2014.parent
    written = make_minival(args.val2014, args.val2017, folder, overwrite=args.overwrite)
    print("Written:", *written, sep="\n  ")
