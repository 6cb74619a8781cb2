"""The command line of tools/benchmark.py."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from se_detection.errors import UserError
from se_detection.modeling.fuse.fuse import COMPILE_MODES

from .arms import ARM_NAMES, ARMS, BOUND, arms_of
from .case import DTYPES, MODES, PARTS, Case

DESCRIPTION = (
    "Measures how long detectors take with each backbone, and how much memory, as ratios to detectron2's plain ResNet. "
    "The arms take turns, so that other work on the machine slows all alike. Ctrl-C ends it; what was measured by then "
    "is printed and written."
)
EXAMPLES = """
examples:
  $ tools/benchmark.py --quick
  $ tools/benchmark.py --arms eager fused compiled bound --json benchmark.json
  $ tools/benchmark.py --mode inference --size 256 512 768 1024 --plot sizes.png
  $ tools/benchmark.py --device cuda --part detector --dtype float32 bfloat16 --size 800 --batch 1 2 4 8
"""
DEPTHS = (18, 50, 101)


def argument_parser() -> ArgumentParser:
    """What :func:`settings` reads, and where the results go: `json`, `plot`, `overwrite`."""
    width = max(map(len, ARM_NAMES))
    about = {
        **{name: arm.about for name, arm in ARMS.items()},
        BOUND: "the least time for ours, by bytes and operations",
    }
    arms = "\n".join(f"  {name:<{width}}  {text}" for name, text in about.items())
    parser = ArgumentParser(
        description=DESCRIPTION, epilog=f"arms:\n{arms}\n{EXAMPLES}", formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arms", nargs="+", metavar="ARM", help="besides stock (default: all; with --quick, those not compiled)"
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["backbone+fpn"], help="default: backbone+fpn")
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=MODES,
        default=MODES,
        help="default: both; what is fused is for inference alone, and in training compiled is ours just compiled",
    )
    parser.add_argument("--depth", type=int, choices=DEPTHS, default=50, help="of the backbone (default: 50)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(DTYPES),
        default=["float32"],
        help="half precision is autocast's (default: float32)",
    )
    parser.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="default: 512; with --quick, 256")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="images (default: 1)")
    parser.add_argument("--rounds", type=int, metavar="N", help="of each case (default: 21; with --quick, 6)")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="default", help="torch.compile's mode")
    parser.add_argument("--seed", type=int, default=0, help="of the order of arms in each round (default: 0)")
    parser.add_argument("--quick", action="store_true", help="less than a minute on two CPU cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there, as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    return parser


@dataclass(frozen=True)
class Settings:
    """What :func:`run_benchmark` is to do."""

    cases: list[Case]
    arms: list[str]
    rounds: int


def settings(args: Namespace) -> Settings:
    """Cases, arms and rounds of a command line.

    Raises:
        UserError: an arm that there isn't, or not in the mode; a case that can't be.
    """
    unknown = [name for name in args.arms or [] if name not in ARM_NAMES]
    if unknown:
        raise UserError(f"--arms {' '.join(unknown)}: choose from {', '.join(ARM_NAMES)}")
    arms = args.arms or [name for name in ARM_NAMES if not (args.quick and name in ARMS and ARMS[name].compiled)]
    for name in args.arms or []:
        if not any(name in arms_of(mode, arms) for mode in args.mode):
            raise UserError(f"--arms {name}: it is for inference alone; add --mode inference, or leave it out")
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
    return Settings(cases, arms, rounds)
