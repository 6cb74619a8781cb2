"""Compares evaluated runs, or COCO result files of any framework, on the same data."""

import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .quick_checks import check_exist

EXAMPLES = """
A RUN is a run folder, or a JSON file in COCO's results format. With two or more training runs (seeds) a side, the
intervals cover other images and other trainings, otherwise other images alone.

examples:
  $ se-det compare --baseline output/plain_1 output/plain_2 --candidate output/se_1 output/se_2
  $ se-det compare --baseline theirs.json --candidate ours.json --annotations instances_val2017.json
  $ se-det compare --baseline output/plain --candidate output/se --pictures 8 --html report.html
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the two sides and the outputs."""
    add = parser.add_argument
    add("--baseline", type=Path, nargs="+", required=True, metavar="RUN", help="the reference")
    add("--candidate", type=Path, nargs="+", required=True, metavar="RUN", help="the detector to compare")
    add("--annotations", type=Path, metavar="FILE", help="COCO annotations, for result files without a run folder")
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="output folder; by default the folder that contains all runs, or else the candidate's",
    )
    add("--pictures", type=int, default=0, metavar="N", help="draw N images side by side (default: none)")
    add("--html", type=Path, metavar="FILE", help="also write one HTML page, with the images that differ most")
    add("--bootstrap", type=int, default=1000, metavar="N", help="bootstrap samples for the intervals (default: 1000)")
    add("--force", action="store_true", help="also compare unfinished runs and runs with different recipes")
    add("--overwrite", action="store_true", help="replace another comparison; the same command replaces its own")


def check(args: Namespace) -> None:
    """Checks that the runs and the annotations exist."""
    check_exist("--baseline", args.baseline, "run.not_evaluated")
    check_exist("--candidate", args.candidate, "run.not_evaluated")
    check_exist("--annotations", [args.annotations], "file.unreadable")


def run(args: Namespace) -> None:
    """Compares, prints the table, and writes the files."""
    from se_detection.comparison.compare_runs import compare_runs
    from se_detection.comparison.side_by_side import draw_side_by_side
    from se_detection.comparison.tables import (
        comparison_table,
        is_report_of,
        report_folder,
        this_command,
        write_report,
    )
    from se_detection.files import check_output

    command = this_command()
    folder = report_folder([*args.baseline, *args.candidate], args.output, overwrite=args.overwrite, command=command)
    if args.html:
        from se_detection.comparison.comparison_page import write_html_report

        check_output(args.html, overwrite=args.overwrite or is_report_of(command, folder), creates_folder=True)
    comparison = compare_runs(
        args.baseline, args.candidate, args.bootstrap, annotations=args.annotations, force=args.force
    )
    print(comparison_table(comparison), flush=True)
    paths = write_report(comparison, folder, command)
    if args.pictures > 0:
        runs = args.baseline[0], args.candidate[0]
        paths += draw_side_by_side(*runs, folder / "pictures", args.pictures, args.annotations)
    names = dict.fromkeys(path.relative_to(folder).parts[0] for path in paths)
    print(f"\nWritten to {_shown(folder)}: {', '.join(names)}")
    if args.html:
        write_html_report(comparison, args.html, args.annotations, shlex.join(sys.argv))
        print(f"open {_shown(args.html)}")


def _shown(path: Path) -> Path:
    """The path, relative to the working directory if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
