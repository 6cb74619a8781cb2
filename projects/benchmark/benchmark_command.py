"""Measures time and memory of detectors with different backbones, as ratios to detectron2's plain ResNet.

The models take turns, so that other load on the machine affects all alike. Ctrl-C ends it; the results so far are
printed and written.
"""

import shlex
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from se_detection.errors import UserError
from se_detection.files import check_output, write_json
from se_detection.modeling.fuse.fuse_detector import COMPILE_MODES

from .benchmark_plots import draw_benchmark
from .benchmark_report import benchmark_json, benchmark_table
from .case import DTYPES, MODES, PARTS, Case
from .run import run_benchmark
from .timed_models import BOUND, MODEL_NAMES, MODELS, models_for

WIDTH = max(map(len, MODEL_NAMES))
DESCRIPTIONS = {
    **{name: model.description for name, model in MODELS.items()},
    BOUND: "a lower bound of our time, from bytes and operations",
}
MODEL_LIST = "\n".join(f"  {name:<{WIDTH}}  {text}" for name, text in DESCRIPTIONS.items())
EXAMPLES = f"""
models:
{MODEL_LIST}

examples:
  $ tools/benchmark.py --quick
  $ tools/benchmark.py --arms eager fused compiled bound --json benchmark.json
  $ tools/benchmark.py --mode inference --size 256 512 768 1024 --plot sizes.png
  $ tools/benchmark.py --device cuda --part detector --dtype float32 bfloat16 --size 800 --batch 1 2 4 8
"""
DEPTHS = (18, 50, 101)


def add_arguments(parser: ArgumentParser) -> None:
    """The models, the cases, and the output."""
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="MODEL",
        help="models to time in addition to stock (default: all; with --quick, all that are not compiled)",
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["backbone+fpn"], help="default: backbone+fpn")
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=MODES,
        default=MODES,
        help="default: both; fused models are for inference only; in training, compiled is compiled but not fused",
    )
    parser.add_argument("--depth", type=int, choices=DEPTHS, default=50, help="depth of the ResNet (default: 50)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument(
        "--dtype", nargs="+", choices=tuple(DTYPES), default=["float32"], help="default: float32; others use autocast"
    )
    parser.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="default: 512; with --quick, 256")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="images per batch (default: 1)")
    parser.add_argument("--rounds", type=int, metavar="N", help="timings of each case (default: 21; with --quick, 6)")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="default", help="mode of torch.compile")
    parser.add_argument("--seed", type=int, default=0, help="for the order of models in each round (default: 0)")
    parser.add_argument("--quick", action="store_true", help="less than a minute on two CPU cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(args: Namespace) -> None:
    """Measures, prints the tables, and writes the files."""
    settings = benchmark_settings(args)
    for path in filter(None, (args.json, args.plot)):
        check_output(path, overwrite=args.overwrite)
    benchmark = run_benchmark(
        settings.cases, settings.models, rounds=settings.rounds, compile_mode=args.compile, seed=args.seed
    )
    print(benchmark_table(benchmark), flush=True)
    if args.json:
        write_json(args.json, benchmark_json(benchmark, shlex.join(sys.argv)), indent=2)
    if args.plot and benchmark.rows:
        draw_benchmark(benchmark, args.plot)
    if benchmark.interrupted:
        sys.exit(130)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Arguments of :func:`run_benchmark`."""

    cases: list[Case]
    models: list[str]
    rounds: int


def benchmark_settings(args: Namespace) -> BenchmarkSettings:
    """Cases, models and rounds from the command line.

    Raises:
        UserError: a model is unknown or not available in the mode, or a case is invalid.
    """
    unknown = [name for name in args.arms or [] if name not in MODEL_NAMES]
    if unknown:
        raise UserError(f"--arms {' '.join(unknown)}: choose from {', '.join(MODEL_NAMES)}")
    models = args.arms or [
        name for name in MODEL_NAMES if not (args.quick and name in MODELS and MODELS[name].compiled)
    ]
    for name in args.arms or []:
        if not any(name in models_for(mode, models) for mode in args.mode):
            raise UserError(f"--arms {name}: it is for inference only; add --mode inference, or remove it")
    rounds = args.rounds or (6 if args.quick else 21)
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: give at least 1, or 6 for intervals")
    cases = [
        Case(part=part, mode=mode, device=device, dtype=dtype, size=size, batch=batch, depth=args.depth)
        for device in [args.device or ("cuda" if torch.cuda.is_available() else "cpu")]
        for part, mode, dtype, size, batch in product(
            args.part, args.mode, args.dtype, sorted(args.size or [256 if args.quick else 512]), sorted(args.batch)
        )
    ]
    return BenchmarkSettings(cases, models, rounds)
