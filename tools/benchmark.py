#!/usr/bin/env python3
"""Measures how long detectors take with each backbone, and how much memory, next to detectron2's plain ResNet."""

import shlex
import sys

from projects.benchmark.benchmark_plots import draw_benchmark
from projects.benchmark.benchmark_report import benchmark_json, benchmark_table
from projects.benchmark.options import argument_parser, settings
from projects.benchmark.run import run_benchmark
from se_detection.errors import run_tool
from se_detection.files import check_output, write_json


def main() -> None:
    args = argument_parser().parse_args()
    chosen = settings(args)
    for path in filter(None, (args.json, args.plot)):
        check_output(path, overwrite=args.overwrite)
    benchmark = run_benchmark(
        chosen.cases, chosen.arms, rounds=chosen.rounds, compile_mode=args.compile, seed=args.seed
    )
    print(benchmark_table(benchmark), flush=True)
    if args.json:
        write_json(args.json, benchmark_json(benchmark, shlex.join(sys.argv)), indent=2)
    if args.plot and benchmark.rows:
        draw_benchmark(benchmark, args.plot)
    if benchmark.interrupted:
        sys.exit(130)


if __name__ == "__main__":
    run_tool(main)
