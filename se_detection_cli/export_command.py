"""Exports trained runs to ONNX, OpenVINO, TorchScript or torch.export, and compares each file with the original."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .quick_checks import check_exist

EXAMPLES = """
OUTPUT gets RUN-FORMAT-PRECISION.{onnx,xml,ts,pt2} and exports.json, a row for each. Each file holds how to prepare an
image (size, channel order) and the classes; examples/detect_onnx.py and detect_openvino.py show how to use them.
Formats and precisions that don't go together are skipped where several are given.

examples:
  $ se-det export --run output/SE_R --format onnx --output exported
  $ se-det export --run output/SE_R --format onnx --precision int8 --calibration-images 200 --output exported
  $ se-det export --run output/SE_R --format openvino --precision float32 bfloat16 int8 --evaluate --output exported
  $ se-det export --run output/SE_R --format onnx --precision int8 --report --max-ap-loss 0.3 --output exported
  $ se-det export --run output/R output/SE_R --format onnx torchscript torch-export --precision float32 float16 \\
        --fuse --evaluate --output exported
"""
FORMATS = ("torchscript", "onnx", "openvino", "torch-export")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the runs, the forms, and the data for the comparison."""
    add = parser.add_argument
    add("--run", type=Path, nargs="+", required=True, metavar="RUN", help="run folders")
    add("--format", nargs="+", choices=FORMATS, required=True, help="torch-export exports only backbone and FPN")
    add("--precision", nargs="+", choices=PRECISIONS, default=["float32"], help="default: float32")
    add("--output", type=Path, required=True, metavar="FOLDER", help="output folder")
    add("--fuse", action="store_true", help="fold norms into convolutions in float32 too")
    add("--scripting", action="store_true", help="script the detector instead of tracing it")
    add("--report", action="store_true", help="int8: print the noise of each layer")
    add(
        "--max-ap-loss",
        type=float,
        metavar="AP",
        help="int8: keep the noisiest layers in float32 until the loss on the test set or split is not larger",
    )
    add("--images", type=int, default=4, metavar="N", help="compare on N images of the test set (default: 4)")
    add("--calibration-images", type=int, default=100, metavar="N", help="training images for int8 (default: 100)")
    add(
        "--split",
        nargs=2,
        type=Path,
        metavar=("JSON", "IMAGES"),
        help="compare on other COCO-format data than the test set",
    )
    add("--evaluate", action="store_true", help="also measure AP before and after the export, on the test set or split")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--overwrite", action="store_true", help="replace existing files")


def check(args: Namespace) -> None:
    """Checks that the runs exist."""
    check_exist("--run", args.run, "run.no_config")


def run(args: Namespace) -> None:
    """Exports, compares, and prints the table."""
    from se_detection.export.export_runs import export_runs, export_table, forms, layer_table

    rows = export_runs(
        args.run,
        forms(args.format, args.precision, fuse=args.fuse, scripting=args.scripting),
        args.output,
        images=args.images,
        calibration=args.calibration_images,
        evaluate=args.evaluate,
        overwrite=args.overwrite,
        report=args.report,
        max_ap_loss=args.max_ap_loss,
        split=args.split,
    )
    print(export_table(rows, tablefmt="github" if args.markdown else "simple"))
    if args.report:
        for row in rows:
            if "layers" in row:
                print(f"\n{row['file']}\n{layer_table(row)}")
