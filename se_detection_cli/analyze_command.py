"""Counts a detector's parameters and GFLOPs, and analyses the SE gates of a trained detector."""

import shlex
import sys
from argparse import REMAINDER, ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .quick_checks import check_config, check_exist

COMPLEXITY = """
example:
  $ se-det analyze complexity --config-file COCO-Detection/faster_rcnn_SE_R_50_FPN_1x --size 800 1216
"""
EXCITATIONS = """
Progress is saved: the same command resumes an analysis that was stopped, and adds an image to one that is finished.

examples:
  $ se-det analyze excitations --run output/se --no-ablation
  $ se-det analyze excitations --run output/se --split val.json val/ --images 500 --output output/gates
  $ se-det analyze excitations --run output/se --picture street.jpg --html gates.html
"""
EXAMPLES = COMPLEXITY + EXCITATIONS


def add_arguments(parser: ArgumentParser) -> None:
    """Adds two commands: `complexity` and `excitations`."""
    add_commands(parser.add_subparsers(required=True))


def add_commands(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Adds both commands; `args.analyze` is the function that runs the chosen one."""
    complexity = commands.add_parser(
        "complexity",
        description="Counts the parameters and GFLOPs of a config's detector, by part.",
        epilog=COMPLEXITY,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = complexity.add_argument
    add("--json", type=Path, metavar="FILE", help="also write the counts as JSON")
    add("--config-file", default="", metavar="FILE", help="the detector's config: its name or a file")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="in pixels; by default 4:3 with height INPUT.MIN_SIZE_TEST",
    )
    add("opts", nargs=REMAINDER, metavar="KEY VALUE", help="config overrides, after all flags")
    complexity.set_defaults(analyze=count_detector, check=check_detector)

    excitations = commands.add_parser(
        "excitations",
        description="Records every SE gate of a trained detector over a data set, by class, and evaluates the detector "
        "with each gate held at its mean. Shows which gates depend on the class, and which SE blocks are dispensable.",
        epilog=EXCITATIONS,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_run_and_data(excitations)
    add = excitations.add_argument
    add("--output", type=Path, metavar="FOLDER", help="by default RUN/excitations")
    add(
        "--no-ablation",
        action="store_true",
        help="only record the gates; do not evaluate the detector without each block's gate",
    )
    add("--picture", type=Path, metavar="FILE", help="draw the effect of the gates on this image")
    add("--html", type=Path, metavar="FILE", help="also write the analysis as one HTML page")
    add("--overwrite", action="store_true", help="replace an existing analysis")
    excitations.set_defaults(analyze=explain_gates, check=check_run)


def add_run_and_data(parser: ArgumentParser) -> None:
    """Adds the run of an analysis, and the images that it uses."""
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="RUN", help="a run folder of se-det train")
    add(
        "--split",
        type=Path,
        nargs=2,
        metavar=("JSON", "IMAGES"),
        help="COCO annotations and their images (default: the run's test set)",
    )
    add("--images", type=int, metavar="N", help="use at most N images, spread evenly over the set")


def check_detector(args: Namespace) -> None:
    """Checks that the config exists, if one is given."""
    if args.config_file:
        check_config(args.config_file)


def check_run(args: Namespace) -> None:
    """Checks that the run and the images exist."""
    check_exist("--run", [args.run], "run.no_config")
    check_exist("--split", args.split or (), "file.unreadable")
    check_exist("--picture", [args.picture], "data.bad_image")


def run(args: Namespace) -> None:
    """Runs the chosen command."""
    args.analyze(args)


def count_detector(args: Namespace) -> None:
    """Prints a detector's parameters and GFLOPs, and writes them as JSON."""
    from se_detection.config.read_config import read_config
    from se_detection.model_zoo import find_config_file
    from se_detection.modeling.complexity import detector_complexity, detector_table

    def counts() -> tuple[str, dict[str, Any]]:
        counted = detector_complexity(read_config(find_config_file(args.config_file), args.opts), args.size)
        return detector_table(counted), counted

    print_and_write(args.json, counts)


def print_and_write(json_file: Path | None, measure: Callable[[], tuple[str, dict[str, Any]]]) -> None:
    """Prints the table of a measurement and writes its content; a file in the way is an error before it."""
    from se_detection.files import check_output, write_json

    if json_file:
        check_output(json_file)
    table, content = measure()
    print(table)
    if json_file:
        write_json(json_file, content, indent=2)


def explain_gates(args: Namespace) -> None:
    """Analyses the gates, and writes tables, plots and the page."""
    from se_detection.files import check_output
    from se_detection.gates.excitations import explain
    from se_detection.gates.gate_tables import excitations_table, write_excitations
    from se_detection.gates.heat_map import draw_effect

    if args.html:
        from se_detection.gates.gate_page import write_excitation_page

        check_output(args.html, overwrite=args.overwrite, creates_folder=True)
    found = explain(
        args.run,
        args.output,
        split=args.split,
        images=args.images,
        ablation=not args.no_ablation,
        image=args.picture,
        overwrite=args.overwrite,
    )
    paths = write_excitations(found)
    if args.picture:
        paths += draw_effect(found, args.picture)
    if args.html:
        paths.append(write_excitation_page(found, paths, args.html, shlex.join(sys.argv)))
    print(excitations_table(found))
    print("\nWritten:", *paths, sep="\n  ")
