"""Several runs in several forms, into one folder with a record of what was written."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import UserError
from ..files import check_output, read_json, write_json
from .exporter import Form, RunExporter

ROWS = "exports.json"


def forms(formats: Sequence[str], precisions: Sequence[str], *, fuse: bool, scripting: bool) -> list[Form]:
    """Every combination that there is.

    Raises:
        UserError: there is none.
    """
    possible: list[Form] = []
    reason: UserError | None = None
    for format, precision in product(formats, precisions):
        try:
            possible.append(Form(format=format, precision=precision, fuse=fuse, scripting=scripting))
        except UserError as error:
            reason = error
    if reason and not possible:
        raise reason
    return possible


def export_runs(
    folders: Sequence[Path],
    wanted: Sequence[Form],
    output: Path,
    *,
    images: int,
    calibration: int,
    evaluate: bool,
    overwrite: bool,
    split: Sequence[Path] | None = None,
) -> list[dict[str, Any]]:
    """Exports each run in each form, and compares each file with its original.

    Args:
        output: a folder, made if need be; `exports.json` in it has a row (`Export.to_dict`) for each file, also of
            earlier calls.
        images: of each run's test set, to compare on.
        calibration: training images for int8.
        evaluate: measure AP.
        split: a COCO file and the folder of its images instead of each run's test set.

    Returns:
        all rows of the folder.

    Raises:
        UserError: a run can't be exported, or a file is there already and `overwrite` is not set; before anything is
            written. Or a float32 export differs from its original: it is written for whoever looks for the reason.
    """
    for name, value in (("--images", images), ("--calibration-images", calibration)):
        if value < 1:
            raise UserError(f"{name} {value}: give at least 1")
    names = [folder.resolve().name for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs are named {twice}, and so would be their files; export them into two folders")
    output.mkdir(parents=True, exist_ok=True)
    for folder, form in product(folders, wanted):
        check_output(form.path(output, folder), overwrite=overwrite)
    path = output / ROWS
    rows = _read_rows(path) if path.is_file() else {}
    for folder in folders:
        exporter = RunExporter(folder, images=images, split=split)
        for form in wanted:
            print(f"{folder}: {form.name}", flush=True)
            file = form.path(output, folder)
            # Were it stopped before the comparison, there would be the numbers of another file.
            if rows.pop(file.name, None):
                write_json(path, list(rows.values()), indent=1)
            export = exporter.export(file, form, calibration=calibration, evaluate=evaluate)
            rows[export.file.name] = export.to_dict()
            write_json(path, list(rows.values()), indent=1)
            if not export.agrees:
                raise UserError(
                    f"{export.file} differs from {folder}: {export.agreement}; it was left there, and is not to be used"
                )
    return list(rows.values())


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    rows = read_json(path)
    try:
        export_table(rows)
        return {row["file"]: row for row in rows}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} was not written by tools/export.py, or is damaged; remove it") from error


HEADERS = ("detector", "format", "precision", "MB", "detections", "unpaired", "boxes (px)", "scores", "others", "AP")


def export_table(rows: Iterable[dict[str, Any]], *, tablefmt: str = "simple") -> str:
    """A line for each of `Export.to_dict`: the worst differences, and what AP it costs where that was measured."""
    return tabulate(map(_line, rows), HEADERS, tablefmt=tablefmt, disable_numparse=True)


def _line(row: dict[str, Any]) -> list[str]:
    worst = dict(row["worst"])
    how = " scripted" if row["scripting"] else " traced" if row["format"] == "torchscript" else ""
    whole = row["format"] != "torch-export"
    first = [row["detector"], row["format"] + how, row["precision"] + ", fused" * row["fuse"], str(row["megabytes"])]
    counts = [str(row["detections"]), str(row["unpaired"])] if whole else ["", ""]
    values = [f"{worst.pop(name):.1e}" if name in worst else "" for name in ("boxes", "scores")]
    others = f"maps {max(worst.values()):.1e}" if not whole else ", ".join(f"{k} {v:.1e}" for k, v in worst.items())
    return [*first, *counts, *values, others, _ap(row["ap"])]


def _ap(ap: dict[str, Any] | None) -> str:
    if ap is None:
        return ""
    difference = ap["difference"]
    interval = f" ({difference['low']:+.2f} to {difference['high']:+.2f})" if difference.get("low") is not None else ""
    return f"{ap['original']:.2f} to {ap['exported']:.2f}, {difference['value']:+.2f}{interval}"
