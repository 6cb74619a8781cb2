"""Several runs in several forms, into one folder with a record of what was written."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ..data.coco_files import read_json
from ..data.output import check_output, write_json
from ..errors import UserError
from .exporter import Form, RunExporter
from .table import export_table

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
        calibration: training pictures for int8.
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
