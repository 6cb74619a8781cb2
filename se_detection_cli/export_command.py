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
    """Adds the runs, the forms, and the data for the comparison."""
    parser.add_argument("--run", type=Path, nargs="+", required=True, metavar="RUN", help="run folders")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, required=True, help="torch-export exports only backbone and FPN"
    )
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="default: float32")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="output folder")
    parser.add_argument("--fuse", action="store_true", help="fold norms into convolutions in float32 too")
    parser.add_argument("--scripting", action="store_true", help="script the detector instead of tracing it")
    parser.add_argument(
        "--images", type=int, default=4, metavar="N", help="compare on N images of the test set (default: 4)"
    )
    parser.add_argument(
        "--calibration-images",
        type=int,
        default=100,
        metavar="N",
        help="calibrate int8 on N training images (default: 100)",
    )
    parser.add_argument(
        "--split",
        nargs=2,
        type=Path,
        metavar=("JSON", "IMAGES"),
        help="compare on COCO-format data of the run's classes instead of its test set",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="also measure AP before and after the export, on the test set or split"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


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
