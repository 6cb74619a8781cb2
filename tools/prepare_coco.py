#!/usr/bin/env python3
"""Prepares COCO-format data: `se-det check-data`, `se-det sample` and `se-det minival` as commands of one script."""

from argparse import ArgumentParser

from se_detection_cli import check_data_command, minival_command, sample_command
from se_detection_cli.main import add_command, parse_and_run

if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, command in (("check", check_data_command), ("sample", sample_command), ("minival", minival_command)):
        add_command(commands.add_parser(name), command)
    parse_and_run(parser)
