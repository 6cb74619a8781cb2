#!/usr/bin/env python3
"""Runs a study, arms x seeds, where each arm's backbone is pre-trained in the same way; and makes its report."""

import os
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from projects.study.definition import read_study
from projects.study.runner import run_study
from projects.study.study_data import Data
from projects.study.study_report import write_study_report
from se_detection.errors import run_tool

EXAMPLE = """
examples:
  $ tools/study.py run --study configs/Study/Study-cpu.yaml --classification pictures.tar.gz \\
      --train-json person/train.json --train-images person/train --val-json person/val.json --val-images person/val
  $ tools/study.py report --study configs/Study/Study-cpu.yaml --page docs/RESULTS.md

The same `run` goes on after whatever ended it, also on another machine that has the records of --results.
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs that have no record yet")
    report = commands.add_parser("report", help="make tables and plots from the records")
    for command in (run, report):
        command.add_argument("--study", type=Path, required=True, help="its yaml file")
        command.add_argument(
            "--results", type=Path, default=Path("docs/results"), help="folder of the records (default: docs/results)"
        )
    run.add_argument("--classification", type=Path, required=True, help="images to pre-train on: see tools/pretrain.py")
    for split in ("train", "val"):
        run.add_argument(f"--{split}-json", type=Path, required=True, help=f"{split} annotations, COCO format")
        run.add_argument(f"--{split}-images", type=Path, required=True, help="their folder of images")
    run.add_argument(
        "--output", type=Path, default=Path("output/study"), help="folder for runs and weights (default: output/study)"
    )
    run.add_argument("--seeds", type=int, nargs="+", help="only these, while others run elsewhere (default: all)")
    run.add_argument("--num-gpus", type=int, default=1, help="for each run")
    report.add_argument("--page", type=Path, help="a Markdown page whose part between the study's marks is replaced")
    args = parser.parse_args()

    study = read_study(args.study)
    if args.command == "report":
        print("Written:", *write_study_report(study, args.results, args.page), sep="\n  ")
        return
    data = Data(
        classification=args.classification,
        train_json=args.train_json,
        train_images=args.train_images,
        val_json=args.val_json,
        val_images=args.val_images,
    )
    run_study(
        study,
        data,
        tools=Path(__file__).parent,
        output=args.output,
        results=args.results,
        seeds=args.seeds or study.seeds,
        gpus=args.num_gpus,
        command=shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    )


if __name__ == "__main__":
    run_tool(main)
