#!/usr/bin/env python3
"""The same as `se-det export`."""

from se_detection_cli import export_command
from se_detection_cli.main import command_parser, parse_and_run

if __name__ == "__main__":
    parse_and_run(command_parser(export_command))
