#!/usr/bin/env python3
"""`se-det analyze`, with the paper's tables, parity with timm, and what padding changes (projects/paper)."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.paper import commands as paper
from se_detection_cli import analyze_command
from se_detection_cli.main import parse_and_run


def run(args: Namespace) -> None:
    # Without a detector, complexity is that of the paper's models.
    if args.analyze is analyze_command.count_detector and not (args.config_file or args.size or args.opts):
        paper.count_paper_models(args)
    else:
        args.analyze(args)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    analyze_command.add_commands(commands)
    paper.add_paper_commands(commands)
    parser.set_defaults(run_command=run)
    parse_and_run(parser)
