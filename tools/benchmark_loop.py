#!/usr/bin/env python3
"""Measures image loading, box evaluation and the memory of loading workers: see projects/benchmark."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.benchmark.loop_command import main
from se_detection.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
