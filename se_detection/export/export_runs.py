"""Exports several runs in several forms into one folder, with a table of all exports."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import UserError
from ..files import check_output, read_json, write_json
from .exporter import Form, RunExporter

ROWS = "exports.json"
HEADERS = ("detector", "format", "precision", "MB", "detections", "unpaired", "boxes (px)", "scores", "others", "AP")


# onnxruntime has no convolutions in bfloat16; few CPUs compute in float16.
PRECISIONS = {
    "torchscript": ("float32", "float16", "bfloat16"),
    "onnx": ("float32", "float16", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "torch-export": ("float32", "float16", "bfloat16"),
}


def forms(formats: Sequence[str], precisions: Sequence[str], *, fuse: bool, scripting: bool) -> list[Form]:
    """All supported combinations of formats and precisions.

    Raises:
        UserError: no combination is supported, or the packages for ONNX are not installed.
    """
    wanted = [
        Form(format=format, precision=precision, fuse=fuse, scripting=scripting)
        for format, precision in product(formats, precisions)
        if precision in PRECISIONS[format]
        if not scripting or (format, precision, fuse) == ("torchscript", "float32", False)
    ]
    if not wanted:
        given = f"--format {' '.join(formats)} --precision {' '.join(precisions)}{' --fuse' * fuse}"
        raise UserError(
            "export.unsupported",
            f"{given}{' --scripting' * scripting} is not supported; int8 needs onnx or openvino, bfloat16 needs "
            "openvino, torchscript or torch-export, and --scripting needs torchscript in float32 without --fuse",
        )
    for format, packages, extra in (
        ("onnx", ("onnx", "onnxruntime"), "export"),
        ("openvino", ("openvino",), "openvino"),
    ):
        if format in formats and not all(map(find_spec, packages)):
            raise UserError(
                "export.no_runtime",
                f"--format {format} needs the packages {' and '.join(packages)}: pip install 'se_detection[{extra}]'",
            )
    return wanted


def export_runs(
    folders: Sequence[Path],
    wanted: Sequence[Form],
    output: Path,
    *,
    images: int,
    calibration: int,
    evaluate: bool,
    overwrite: bool,
    report: bool = False,
    max_ap_loss: float | None = None,
    split: Sequence[Path] | None = None,
) -> list[dict[str, Any]]:
    """Exports each run in each form, and compares each export with its original.

    Args:
        folders: of the runs.
        output: the folder of the exports, created if missing. Its `exports.json` has a row (`Export.to_dict`) for each
            file, including those of earlier calls.
        images: number of test images to compare on.
        calibration: number of training images for int8.
        evaluate: measure AP.
        overwrite: replace existing files.
        report, max_ap_loss: of int8, see :meth:`RunExporter.export`.
        split: a COCO file and its image folder, to use instead of each run's test set.

    Returns:
        All rows of `exports.json`.

    Raises:
        UserError: a run can't be exported, or a file exists and `overwrite` is false: nothing is written. Or a float32
            export differs from its original: the file is kept for inspection.
    """
    if min(images, calibration) < 1:
        raise UserError("export.images", f"--images {images}, --calibration-images {calibration}: give at least 1")
    names = [folder.resolve().name for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            "export.same_name",
            f"two runs are named {twice}, so their exports would have the same names; export them into two folders",
        )
    output.mkdir(parents=True, exist_ok=True)
    for folder, form in product(folders, wanted):
        check_output(form.path(output, folder), overwrite=overwrite)
    path = output / ROWS
    rows = {row["file"]: row for row in read_json(path)} if path.is_file() else {}
    for folder in folders:
        exporter = RunExporter(folder, images=images, split=split)
        for form in wanted:
            print(f"{folder}: {form.name}", flush=True)
            file = form.path(output, folder)
            # If this is stopped before the comparison, the old row must not describe the new file.
            if rows.pop(file.name, None):
                write_json(path, list(rows.values()), indent=1)
            export = exporter.export(
                file, form, calibration=calibration, evaluate=evaluate, report=report, max_ap_loss=max_ap_loss
            )
            rows[export.file.name] = export.to_dict()
            write_json(path, list(rows.values()), indent=1)
            if not export.agrees:
                raise UserError(
                    "export.differs",
                    f"{export.file} differs from {folder}: {export.difference}; the file is kept for inspection, "
                    "don't use it",
                )
    return list(rows.values())


def export_table(rows: Iterable[dict[str, Any]], *, tablefmt: str = "simple") -> str:
    """A table with a line for each `Export.to_dict`: the largest differences, and AP before and after if measured."""
    return tabulate(map(_table_line, rows), HEADERS, tablefmt=tablefmt, disable_numparse=True)


def layer_table(row: dict[str, Any]) -> str:
    """The layers of an int8 export, the noisiest first."""
    lines = [[name, f"{ratio:.1f}", "float32" * (name in row["float_layers"])] for name, ratio in row["layers"].items()]
    return tabulate(lines, ["layer", "signal to noise (dB)", "kept in"], disable_numparse=True)


def _table_line(row: dict[str, Any]) -> list[str]:
    worst = dict(row["worst"])
    method = " scripted" if row["scripting"] else " traced" if row["format"] == "torchscript" else ""
    has_detections = row["format"] != "torch-export"
    first = [row["detector"], row["format"] + method, row["precision"] + ", fused" * row["fuse"], str(row["megabytes"])]
    counts = [str(row["detections"]), str(row["unpaired"])] if has_detections else ["", ""]
    values = [f"{worst.pop(name):.1e}" if name in worst else "" for name in ("boxes", "scores")]
    if has_detections:
        others = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    else:
        others = f"maps {max(worst.values()):.1e}"
    return [*first, *counts, *values, others, _ap(row["ap"])]


def _ap(ap: dict[str, Any] | None) -> str:
    if ap is None:
        return ""
    difference = ap["difference"]
    interval = f" ({difference['low']:+.2f} to {difference['high']:+.2f})" if difference.get("low") is not None else ""
    return f"{ap['original']:.2f} to {ap['exported']:.2f}, {difference['value']:+.2f}{interval}"
