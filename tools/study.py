#!/usr/bin/env python3
"""See projects/study."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.study import study_command
from se_detection_cli.main import command_parser, parse_and_run

if __name__ == "__main__":
    parse_and_run(command_parser(study_command))
