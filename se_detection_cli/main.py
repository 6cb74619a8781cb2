"""`se-det COMMAND`, and single commands for the scripts in tools/."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import partial
from types import ModuleType

from . import (
    analyze_command,
    check_data_command,
    compare_command,
    convert_command,
    export_command,
    minival_command,
    predict_command,
    pretrain_command,
    quickstart_command,
    sample_command,
    train_command,
    zoo_command,
)
from .quick_checks import QuickError

# Each has a docstring and `EXAMPLES` for its help, `add_arguments(parser)`, and `run(args)`. Most have `check(args)`:
# what can be checked before `run` imports torch.
COMMANDS = {
    "quickstart": quickstart_command,
    "train": train_command,
    "compare": compare_command,
    "predict": predict_command,
    "check-data": check_data_command,
    "sample": sample_command,
    "minival": minival_command,
    "convert": convert_command,
    "export": export_command,
    "analyze": analyze_command,
    "pretrain": pretrain_command,
    "zoo": zoo_command,
}


def add_command(parser: ArgumentParser, command: ModuleType) -> None:
    """Sets up a command's parser: help, arguments, and `args.run_command` and `args.check`, which run and check it."""
    parser.description, parser.epilog = command.__doc__, command.EXAMPLES
    parser.formatter_class = RawDescriptionHelpFormatter
    command.add_arguments(parser)
    parser.set_defaults(run_command=command.run, check=getattr(command, "check", None))


def main_parser() -> ArgumentParser:
    """The parser of `se-det`, with all commands."""
    parser = ArgumentParser(prog="se-det", description="Squeeze-and-excitation backbones for detectron2.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        add_command(commands.add_parser(name, help=(command.__doc__ or "").splitlines()[0]), command)
    return parser


def command_parser(command: ModuleType) -> ArgumentParser:
    """The parser of a single command, for a script."""
    parser = ArgumentParser()
    add_command(parser, command)
    return parser


def parse_and_run(parser: ArgumentParser) -> None:
    """Parses the command line, then runs the command; a user error prints one line and exits with code 2."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    args = parser.parse_args()
    try:
        if check := getattr(args, "check", None):
            check(args)
    except QuickError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from se_detection.errors import run_tool

    run_tool(partial(args.run_command, args))


def main() -> None:
    """The console script."""
    parse_and_run(main_parser())
