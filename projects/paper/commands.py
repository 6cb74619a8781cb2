"""The commands `parity` and `padding` of tools/analyze.py, and the paper's tables of `complexity`."""

from argparse import REMAINDER, ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from pathlib import Path
from typing import Any

from se_detection_cli.analyze_command import add_run_and_data, print_and_write

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
    parity = commands.add_parser(
        "parity",
        description="Compares each backbone with timm's at res2 to res5, with the same weights, and prints the largest "
        "relative error.",
        epilog=PARITY,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parity.set_defaults(analyze=run_parity)
    padding = commands.add_parser(
        "padding",
        description="Runs a trained detector on each image alone and in a batch, where it is padded, and prints how "
        "much gates, features, scores and boxes change.",
        epilog=PADDING,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_run_and_data(padding)
    padding.add_argument("--batch", type=int, default=4, metavar="N", help="images per batch (default: 4)")
    padding.set_defaults(analyze=run_padding)
    for parser in (parity, padding):
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    padding.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help="config overrides, after all flags")


def count_paper_models(args: Namespace) -> None:
    """Prints parameters and GFLOPs of the paper's models; `args.json` is a file for them, or None."""

    def counts() -> tuple[str, dict[str, Any]]:
        from .paper_tables import measure, paper_table

        rows = measure()
        return paper_table(rows), {"rows": rows}

    print_and_write(args.json, counts)


def run_parity(args: Namespace) -> None:
    """Prints the errors of all backbones; `args.json` is a file for them, or None."""

    def errors() -> tuple[str, dict[str, Any]]:
        from tqdm import tqdm

        from .parity import NAMES, parity, parity_table

        rows = [parity(name) for name in tqdm(NAMES, "networks", leave=False)]
        return parity_table(rows), {"rows": rows}

    print_and_write(args.json, errors)


def run_padding(args: Namespace) -> None:
    """Prints the effect of padding; for the arguments see :func:`add_paper_commands`."""

    def effect() -> tuple[str, dict[str, Any]]:
        from .padding_drift import drift_table, padding_drift

        drift = padding_drift(args.run, overrides=args.opts, split=args.split, images=args.images, batch=args.batch)
        return drift_table(drift), drift.to_dict()

    print_and_write(args.json, effect)
