"""Exports trained runs to TorchScript, ONNX or torch.export, and compares each file with the original."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

EXAMPLES = """
OUTPUT gets RUN-FORMAT-PRECISION.{ts,onnx,pt2} and exports.json, a row for each. Each file holds how to prepare an image
(size, channel order) and the classes; examples/detect_onnx.py shows how to use them. Formats and precisions that don't
go together are skipped where several are given.

examples:
  $ se-det export --run output/SE_R --format onnx --output exported
  $ se-det export --run output/SE_R --format onnx --precision int8 --calibration-images 200 --output exported
  $ se-det export --run output/R output/SE_R --format onnx torchscript torch-export --precision float32 float16 \\
        --fuse --evaluate --output exported
"""
FORMATS = ("torchscript", "onnx", "torch-export")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")


def add_arguments(parser: ArgumentParser) -> None:
    """The runs, the forms, and the data that they are compared on."""
    parser.add_argument("--run", type=Path, nargs="+", required=True, metavar="RUN", help="run folders")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, required=True, help="torch-export has backbone and FPN alone"
    )
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="default: float32")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--fuse", action="store_true", help="in float32 too, fold norms into the convolutions before them"
    )
    parser.add_argument("--scripting", action="store_true", help="script the detector instead of tracing it")
    parser.add_argument(
        "--images", type=int, default=4, metavar="N", help="compare on so many images of the test set; default 4"
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=100,
        metavar="N",
        help="training images by which int8 finds the range of each map's values; default 100",
    )
    parser.add_argument(
        "--split",
        nargs=2,
        type=Path,
        metavar=("JSON", "IMAGES"),
        help="compare on COCO-format data of the run's classes instead of its test set",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="measure what AP the export costs over the test set, or the split"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run(args: Namespace) -> None:
    """Exports, compares, and prints the table."""
    from se_detection.export.export_runs import export_runs, export_table, forms

    rows = export_runs(
        args.run,
        forms(args.format, args.precision, fuse=args.fuse, scripting=args.scripting),
        args.output,
        images=args.images,
        calibration=args.calibration_images,
        evaluate=args.evaluate,
        overwrite=args.overwrite,
        split=args.split,
    )
    print(export_table(rows, tablefmt="github" if args.markdown else "simple"))
