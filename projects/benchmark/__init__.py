"""How long detectors take with each backbone, and how much memory: as ratios to detectron2's plain ResNet."""

from .benchmark_plots import draw_benchmark
from .benchmark_report import benchmark_json, benchmark_table
from .options import argument_parser, settings
from .run import run_benchmark

__all__ = ["argument_parser", "benchmark_json", "benchmark_table", "draw_benchmark", "run_benchmark", "settings"]
