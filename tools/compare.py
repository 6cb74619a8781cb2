#!/usr/bin/env python3
"""The same as `se-det compare`."""

from se_detection_cli import compare_command
from se_detection_cli.main import command_parser, parse_and_run

if __name__ == "__main__":
    parse_and_run(command_parser(compare_command))
