#!/usr/bin/env python3
"""Trains and reports studies of detectors, variants x seeds: see projects/study."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.study.study_command import main
from se_detection.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
