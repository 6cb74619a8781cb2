"""Trains the variants of a study on its data sets with several seeds, and reports the results."""

import os
import shlex
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
EXAMPLES = """
examples:
  $ tools/study.py run --study configs/Study/Study-cpu.yaml --data datasets
  $ tools/study.py report --study configs/Study/Study-cpu.yaml --page docs/RESULTS.md

After an interruption, the same `run` command resumes the study, also on another machine that has the records of
--results. Two processes, or machines, share it with --only, --variants or --seeds.
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Two commands, in `args.command`: `run` and `report`."""
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs that have no record yet")
    report = commands.add_parser("report", help="make tables and a figure from the records")
    for command in (run, report):
        command.add_argument("--study", type=Path, required=True, help="yaml file of the study")
        command.add_argument(
            "--results", type=Path, default=Path("docs/results"), help="folder of the records (default: docs/results)"
        )
    run.add_argument("--data", type=Path, required=True, help="folder that the study's DATA is relative to")
    run.add_argument(
        "--output", type=Path, default=Path("output/study"), help="folder for runs and weights (default: output/study)"
    )
    run.add_argument("--only", nargs="+", default=(), metavar="NAME", help="run only these data sets (default: all)")
    run.add_argument("--variants", nargs="+", default=(), metavar="NAME", help="run only these variants (default: all)")
    run.add_argument("--seeds", type=int, nargs="+", default=(), help="run only these seeds (default: all)")
    run.add_argument("--num-gpus", type=int, default=1, help="GPUs per run (default: 1)")
    report.add_argument(
        "--page", type=Path, help="Markdown page; the part between the marks of the study is replaced (default: print)"
    )


def run(args: Namespace) -> None:
    """Makes the runs, or the report."""
    from .definition import read_study
    from .runner import StudyRunner
    from .study_report import write_study_report

    study = read_study(args.study)
    if args.command == "report":
        print("Written:", *write_study_report(study, args.results, args.page), sep="\n  ")
        return
    runner = StudyRunner(
        study=study,
        root=args.data,
        tools=TOOLS,
        output=args.output,
        results=args.results,
        gpus=args.num_gpus,
        command=shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    )
    runner.run(args.only, args.seeds, args.variants)
