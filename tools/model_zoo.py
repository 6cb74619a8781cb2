#!/usr/bin/env python3
"""Writes MODEL_ZOO.md: a row for each config, with its recipe, size, weights, and published and measured AP."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from dev.model_zoo_page import check_page, zoo_page, zoo_rows
from se_detection import model_zoo
from se_detection.errors import run_tool
from se_detection.files import write_whole

EXAMPLE = """
example:
  $ tools/model_zoo.py --output MODEL_ZOO.md
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="by default the page is printed")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parents[1] / "docs" / "results",
        metavar="FOLDER",
        help="the records of tools/study.py (default: docs/results)",
    )
    args = parser.parse_args()
    if args.output:
        check_page(args.output)
    page = zoo_page(list(zoo_rows(model_zoo.names(), args.results)))
    if args.output:
        write_whole(args.output, lambda file: file.write(page.encode()))
    else:
        print(page, end="")


if __name__ == "__main__":
    run_tool(main)
