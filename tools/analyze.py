#!/usr/bin/env python3
"""Counts parameters and GFLOPs, next to the paper's or of a config's detector; compares every trunk with timm's."""

from argparse import REMAINDER, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from se_detection.analysis.detector import detector_complexity, load_detector_config
from se_detection.analysis.paper import measure
from se_detection.analysis.report import check_new_file, detector_table, paper_table, parity_table, write_json
from se_detection.checkpoint.parity import measure_parity
from se_detection.errors import UserError, run_tool

EXAMPLE = """
examples:
  the paper's models and ablations:
    $ tools/analyze.py complexity
  a detector, by part:
    $ tools/analyze.py complexity --config-file configs/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.yaml --size 800 1216
  every trunk against timm's network, with the same random weights (a minute):
    $ tools/analyze.py parity
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    complexity = commands.add_parser(
        "complexity", description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter
    )
    complexity.add_argument("--json", type=Path, metavar="FILE", help="write the counts there too")
    complexity.add_argument("--config-file", metavar="FILE", help="count this detector instead of the paper's models")
    complexity.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the picture in pixels; by default 4:3 with the config's INPUT.MIN_SIZE_TEST as its height",
    )
    complexity.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help="config overrides, after all flags")
    parity = commands.add_parser("parity", description="The worst relative error of every trunk at res2 to res5.")
    parity.add_argument("--json", type=Path, metavar="FILE", help="write the errors there too")
    args = parser.parse_args()

    if args.json:
        check_new_file(args.json)
    if args.command == "parity":
        errors = measure_parity()
        print(parity_table(errors))
        content = {"rows": [error.to_dict() for error in errors]}
    elif args.config_file is not None:
        counted = detector_complexity(load_detector_config(args.config_file, args.opts), args.size)
        print(detector_table(counted))
        content = counted.to_dict()
    elif args.size or args.opts:
        raise UserError("--size and KEY VALUE are for a detector: name one by --config-file, before KEY VALUE")
    else:
        rows = measure()
        print(paper_table(rows))
        content = {"rows": [row.to_dict() for row in rows]}
    if args.json:
        write_json(content, args.json)


if __name__ == "__main__":
    run_tool(main)
