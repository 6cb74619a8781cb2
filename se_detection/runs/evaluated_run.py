"""Reads the evaluation of a run folder, or a bare file of COCO results."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.checkpointer import LAST
from ..data.coco_format import Rule, is_name, problems
from ..errors import UserError
from ..files import read_json
from .bad_images import read_bad_images
from .recipe import Recipe, read_recipe
from .record import are_names, is_name_or_none, read_record
from .run_folder import DETECTIONS, FINAL, INFERENCE, RESULTS

# The keys of `inference/results.json` that are used.
RESULTS_RULES = {
    "annotations": Rule("a path", is_name),
    "categories": Rule("a list of names", are_names),
    "image_root": Rule("a path or null", is_name_or_none, required=False),
}


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluated run folder, or a bare file of COCO results.

    Args:
        path: the folder or the file.
        annotations: the COCO annotations on which it was evaluated.
        results: the content of `inference/results.json`; empty for a bare file.
        record: the content of `run.json`; empty without one.
        recipe: the config; None without a saved one.
    """

    path: Path
    annotations: Path
    results: dict[str, Any]
    record: dict[str, Any]
    recipe: Recipe | None

    @property
    def name(self) -> str:
        """The name of the folder; for a bare file outside a run folder, the file's."""
        path = self.path.resolve()
        if path.is_file():
            path = path.parent if path.name == DETECTIONS else path.with_suffix("")
            path = path.parent if path.name == INFERENCE else path
        return path.name

    @property
    def detections(self) -> Path:
        """The file of detections, in COCO's results format."""
        return self.path if self.path.is_file() else self.path / INFERENCE / DETECTIONS

    @property
    def skipped(self) -> set[str]:
        """The names of the training images that were skipped.

        Raises:
            UserError: the list can't be read.
        """
        return {Path(image.file_name).name for image in read_bad_images(self.path)}

    @property
    def unfinished(self) -> str:
        """The name of the last checkpoint of an unfinished training; empty if the training is finished."""
        tag = self.path / LAST
        last = tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""
        return "" if last == FINAL else last


def read_run(path: Path, annotations: Path | None = None) -> EvaluatedRun:
    """Reads a run folder or, with annotations, a bare file of COCO results.

    Args:
        annotations: COCO annotations; needed for a bare file, and used if a folder's own annotations are gone.

    Raises:
        UserError: it is not a run, was not evaluated, or its annotations are unknown or gone.
    """
    if path.is_file():
        if annotations is None:
            raise UserError(f"{path} is a bare file of results; give its COCO annotations with --annotations")
        return EvaluatedRun(path, annotations, {}, {}, None)
    file = path / INFERENCE / RESULTS
    if not file.is_file():
        several = sorted(found.parent.name for found in path.glob(f"{INFERENCE}/*/{RESULTS}"))
        if several:
            raise UserError(
                f"{path}: evaluated on several data sets ({', '.join(several)}); evaluate it on one of them"
            )
        raise UserError(
            f"{path}: no {INFERENCE}/{RESULTS}; is it a run folder? evaluate it with "
            f"se-det train --eval-only --resume ... OUTPUT_DIR {path}"
        )
    results = read_json(file)
    record = read_record(path)
    if wrong := next(problems(results, RESULTS_RULES), None):
        raise UserError(
            f"{file} was not written by an evaluation of this project: it {wrong.text}, or evaluate the run again"
        )
    own = Path(results["annotations"])
    if os.path.isfile(own):
        annotations = own
    elif annotations is None:
        raise UserError(
            f"{file}: its annotations {own} are gone; evaluate the run again, or name them with --annotations"
        )
    return EvaluatedRun(path, annotations, results, record, read_recipe(path))
