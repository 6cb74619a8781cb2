"""Converts another project's ResNet or SE-ResNet weights into a file for detectron2's MODEL.WEIGHTS."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

EXAMPLES = """
examples:
  a file, and a check that both networks compute the same:
    $ se-det convert se_resnet50-ce0d4300.pth --source cadene --output se_resnet50.pth --verify
  weights that timm downloads:
    $ se-det convert legacy_seresnet50.in1k --output legacy_seresnet50.safetensors
  weights that pytorchcv released:
    $ se-det convert pytorchcv://seresnet50b --output seresnet50b.pth
"""
SOURCES = ("timm", "timm-legacy", "torchvision", "cadene", "mmpretrain", "pytorchcv", "moskomule")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the input, its source, and the output."""
    add = parser.add_argument
    text = "a .pth or .safetensors file or its URL, timm's name of the weights, mmpretrain://NAME or pytorchcv://NAME"
    add("input", metavar="INPUT", help=text)
    add("--source", choices=SOURCES, help="the library the file is from; not needed for a name")
    add("--architecture", default="", metavar="NAME", help="the name of a file's network, if its tensors fit several")
    add("--depth", type=int, metavar="N", help="refuse a network of another depth")
    add("--ema", action="store_true", help="from a checkpoint that has both, take the moving average of the weights")
    add("--output", type=Path, required=True, metavar="FILE", help="the file to write: .pth or .safetensors")
    add("--verify", action="store_true", help="first compare with timm's network on random images")


def run(args: Namespace) -> None:
    """Converts, verifies, and writes the file."""
    from se_detection.checkpoint.convert_input import convert_input
    from se_detection.checkpoint.converted import check_target
    from se_detection.checkpoint.verify import SIZES, TOLERANCE, network_name, relative_errors
    from se_detection.errors import UserError

    check_target(args.output)
    converted = convert_input(args.input, args.source, architecture=args.architecture, depth=args.depth, ema=args.ema)
    print(f"The weights assume: {converted.assumptions}")
    if args.verify:
        errors = relative_errors(converted)
        print(f"Compared with timm's {network_name(converted)}:")
        print("relative error", *(f"{height}x{width}" for height, width in SIZES), sep="\t")
        for stage, of_sizes in errors.items():
            print(stage, *(f"{error:.1e}" for error in of_sizes), sep="\t\t")
        if not max(map(max, errors.values())) <= TOLERANCE:
            text = f"the converted network differs from timm's by more than {TOLERANCE}; nothing was written"
            raise UserError("weights.not_verified", text)
    converted.save(args.output)
    print(f"Written: {args.output} (sha256 of the input: {converted.assumptions.sha256})")
