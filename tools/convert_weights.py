#!/usr/bin/env python3
"""Converts another project's ResNet or SE-ResNet weights into a file for detectron2's MODEL.WEIGHTS."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from se_detection.checkpoint.convert import SOURCES
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.converted import check_target
from se_detection.checkpoint.verify import SIZES, TOLERANCE, relative_errors
from se_detection.errors import UserError, run_tool

EXAMPLE = """
examples:
  a file, and a check that both networks compute the same:
    $ tools/convert_weights.py se_resnet50-ce0d4300.pth --source cadene --output se_resnet50.pth --verify
  weights that timm fetches:
    $ tools/convert_weights.py legacy_seresnet50.in1k --output legacy_seresnet50.safetensors
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="a .pth or .safetensors file, or the name of weights of timm's")
    parser.add_argument("--source", choices=SOURCES, help="whose file it is; weights of timm's need none")
    parser.add_argument("--depth", type=int, metavar="N", help="refuse a network of another depth")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="what to write: .pth or .safetensors"
    )
    parser.add_argument("--verify", action="store_true", help="compare with timm's network on random images, first")
    args = parser.parse_args()

    check_target(args.output)
    converted = convert_input(args.input, args.source, depth=args.depth)
    print(f"The weights assume: {converted.assumptions}")
    if args.verify:
        errors = relative_errors(converted)
        print("relative error", *(f"{height}x{width}" for height, width in SIZES), sep="\t")
        for stage, of_sizes in errors.items():
            print(stage, *(f"{error:.1e}" for error in of_sizes), sep="\t\t")
        if not max(map(max, errors.values())) <= TOLERANCE:
            raise UserError(f"the converted network differs from timm's by more than {TOLERANCE}; nothing was written")
    converted.save(args.output)
    print(f"Written: {args.output} (sha256 of the input: {converted.assumptions.sha256})")


if __name__ == "__main__":
    run_tool(main)
