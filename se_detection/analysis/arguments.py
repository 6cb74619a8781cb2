"""The command line of tools/analyze.py."""

from argparse import REMAINDER, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

DESCRIPTION = (
    "Counts parameters and GFLOPs, compares every backbone with timm's, explains what the SE gates of a trained detector "
    "do, and shows how far its answer depends on a batch's padding."
)
COMPLEXITY = """
examples:
  the paper's models and ablations:
    $ tools/analyze.py complexity
  a detector, by part:
    $ tools/analyze.py complexity --config-file configs/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.yaml --size 800 1216
"""
PARITY = """
example (a minute):
    $ tools/analyze.py parity
"""
EXCITATIONS = """
What is done is saved: the same command goes on with an analysis that was stopped, and adds an image to one that is
finished.

examples:
    $ tools/analyze.py excitations --run output/se --no-ablation
    $ tools/analyze.py excitations --run output/se --split val.json val/ --images 500 --output output/gates
    $ tools/analyze.py excitations --run output/se --picture street.jpg --html gates.html
"""

PADDING = """
example, with and without what keeps padding out of the features:
    $ tools/analyze.py padding --run output/se --images 50
    $ tools/analyze.py padding --run output/se --images 50 MODEL.SE.IGNORE_PADDING True
"""


def argument_parser() -> ArgumentParser:
    """Four commands, in `command`: `complexity`, `parity`, `excitations` and `padding`."""
    parser = ArgumentParser(
        description=DESCRIPTION,
        epilog=COMPLEXITY + PARITY + EXCITATIONS + PADDING,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    complexity = commands.add_parser(
        "complexity",
        description="Counts parameters and GFLOPs, next to the paper's or of a config's detector.",
        epilog=COMPLEXITY,
        formatter_class=RawDescriptionHelpFormatter,
    )
    complexity.add_argument("--json", type=Path, metavar="FILE", help="write the counts there too")
    complexity.add_argument("--config-file", metavar="FILE", help="count this detector instead of the paper's models")
    complexity.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the image in pixels; by default 4:3 with the config's INPUT.MIN_SIZE_TEST as its height",
    )
    complexity.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help="config overrides, after all flags")

    parity = commands.add_parser(
        "parity",
        description="The worst relative error of every backbone at res2 to res5, against timm's of the same weights.",
        epilog=PARITY,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parity.add_argument("--json", type=Path, metavar="FILE", help="write the errors there too")

    excitations = commands.add_parser(
        "excitations",
        description="Records every SE gate of a trained detector over a split, by class, and evaluates the detector "
        "with each gate held at its mean: what tells classes apart, and which SE blocks it could do without.",
        epilog=EXCITATIONS,
        formatter_class=RawDescriptionHelpFormatter,
    )
    excitations.add_argument("--run", type=Path, required=True, metavar="RUN", help="a folder of tools/train_net.py")
    excitations.add_argument(
        "--output", type=Path, metavar="FOLDER", help="what is found goes there; by default RUN/excitations"
    )
    _add_split(excitations)
    excitations.add_argument(
        "--no-ablation",
        action="store_true",
        help="record the gates and evaluate nothing; otherwise the split is gone through once more for each block, and "
        "up to three times besides",
    )
    excitations.add_argument(
        "--picture", type=Path, metavar="FILE", help="show what the gates do to this image, and what is detected"
    )
    excitations.add_argument("--html", type=Path, metavar="FILE", help="write all of it as one page to send")
    excitations.add_argument("--overwrite", action="store_true", help="begin anew where there is an analysis already")

    padding = commands.add_parser(
        "padding",
        description="Gives a trained detector each image alone and in a batch with others, whose sizes it is padded "
        "to: how much gates, features, scores and boxes change.",
        epilog=PADDING,
        formatter_class=RawDescriptionHelpFormatter,
    )
    padding.add_argument("--run", type=Path, required=True, metavar="RUN", help="a folder of tools/train_net.py")
    _add_split(padding)
    padding.add_argument("--batch", type=int, default=4, metavar="N", help="so many images share a batch; default 4")
    padding.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    padding.add_argument("opts", nargs=REMAINDER, metavar="KEY VALUE", help="config overrides, after all flags")
    return parser


def _add_split(command: ArgumentParser) -> None:
    command.add_argument(
        "--split",
        type=Path,
        nargs=2,
        metavar=("JSON", "IMAGES"),
        help="COCO annotations and the folder of their images, instead of the run's test set",
    )
    command.add_argument("--images", type=int, metavar="N", help="at most so many, spread evenly over the set")
