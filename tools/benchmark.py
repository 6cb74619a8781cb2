#!/usr/bin/env python3
"""Measures time and memory of detectors with different backbones: see projects/benchmark."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.benchmark.benchmark_command import main
from se_detection.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
