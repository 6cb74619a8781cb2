"""The commands `parity` and `padding` of tools/analyze.py, and the paper's tables of `complexity`."""

from argparse import REMAINDER, ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Callable
from pathlib import Path
from typing import Any

from se_detection_cli.analyze_command import add_run_and_data

PARITY = """
example (one minute):
  $ tools/analyze.py parity
"""
PADDING = """
examples, without and with IGNORE_PADDING:
  $ tools/analyze.py padding --run output/se --images 50
  $ tools/analyze.py padding --run output/se --images 50 MODEL.SE.IGNORE_PADDING True
"""


def add_paper_commands(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Adds `parity` and `padding`; `args.analyze` is the function that runs the chosen command."""
    add_parity(commands)
    add_padding(commands)


def add_parity(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Adds `parity`: our backbones against timm's."""
    parser = commands.add_parser(
        "parity",
        description="Compares each backbone with timm's at res2 to res5, with the same weights, and prints the largest "
        "relative error.",
        epilog=PARITY,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the errors as JSON")
    parser.set_defaults(analyze=run_parity)


def add_padding(commands: "_SubParsersAction[ArgumentParser]") -> None:
    """Adds `padding`: the effect of a batch's padding on a trained detector."""
    parser = commands.add_parser(
        "padding",
        description="Runs a trained detector on each image alone and in a batch, where it is padded, and prints how "
        "much gates, features, scores and boxes change.",
        epilog=PADDING,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_run_and_data(parser)
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="images per batch (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help="config overrides, after all flags")
    parser.set_defaults(analyze=run_padding)


def count_paper_models(args: Namespace) -> None:
    """Prints parameters and GFLOPs of the paper's models; `args.json` is a file for them, or None."""

    def counts() -> tuple[str, dict[str, Any]]:
        from .formatting import paper_table
        from .paper_tables import measure

        rows = measure()
        return paper_table(rows), {"rows": [row.to_dict() for row in rows]}

    _print_and_write(args.json, counts)


def run_parity(args: Namespace) -> None:
    """Prints the errors of all backbones; `args.json` is a file for them, or None."""

    def errors() -> tuple[str, dict[str, Any]]:
        from .formatting import parity_table
        from .parity import measure_parity

        rows = measure_parity()
        return parity_table(rows), {"rows": [row.to_dict() for row in rows]}

    _print_and_write(args.json, errors)


def run_padding(args: Namespace) -> None:
    """Prints the effect of padding; for the arguments see :func:`add_padding`."""

    def effect() -> tuple[str, dict[str, Any]]:
        from .padding_drift import drift_table, padding_drift

        drift = padding_drift(args.run, overrides=args.opts, split=args.split, images=args.images, batch=args.batch)
        return drift_table(drift), drift.to_dict()

    _print_and_write(args.json, effect)


def _print_and_write(json_file: Path | None, measure: Callable[[], tuple[str, dict[str, Any]]]) -> None:
    """Prints the table of a measurement and writes its content; a file in the way is an error before it."""
    from se_detection.files import check_output, write_json

    if json_file:
        check_output(json_file)
    table, content = measure()
    print(table)
    if json_file:
        write_json(json_file, content, indent=2)
