"""Reads the evaluation of a run folder, or a bare file of COCO results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.checkpointer import LAST
from ..errors import UserError
from ..files import read_json
from .bad_images import read_bad_images
from .evaluated_checkpoint import EvaluatedCheckpoint
from .recipe import Recipe, read_recipe
from .record import read_record
from .run_folder import DETECTIONS, FINAL, INFERENCE, RESULTS, evaluation_advice


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
    def checkpoint(self) -> EvaluatedCheckpoint | None:
        """The checkpoint that was evaluated; None if it is not recorded."""
        return EvaluatedCheckpoint.recorded(self.results)

    @property
    def last_checkpoint(self) -> str:
        """The name of the last checkpoint of a training; empty without one."""
        tag = self.path / LAST
        return tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""

    @property
    def unfinished(self) -> str:
        """The name of the last checkpoint of an unfinished training; empty if the training is finished."""
        return "" if self.last_checkpoint == FINAL else self.last_checkpoint


def read_run(path: Path, annotations: Path | None = None) -> EvaluatedRun:
    """Reads a run folder or, with annotations, a bare file of COCO results.

    Args:
        annotations: COCO annotations; needed for a bare file, and used if a folder's own annotations are gone.

    Raises:
        UserError: it is not a run, was not evaluated, or its annotations are unknown or gone.
    """
    if path.is_file():
        if annotations is None:
            message = f"{path} is a bare file of results; give its COCO annotations with --annotations"
            raise UserError("run.no_annotations", message)
        return EvaluatedRun(path, annotations, {}, {}, None)
    file = path / INFERENCE / RESULTS
    several = sorted(path.glob(f"{INFERENCE}/*/{RESULTS}"))
    if several and not (file.is_file() and all(file.stat().st_mtime > other.stat().st_mtime for other in several)):
        names = ", ".join(other.parent.name for other in several)
        message = f"{path}: evaluated on several data sets ({names}); evaluate it on one of them"
        raise UserError("run.several_sets", message)
    results = read_json(file) if file.is_file() else None
    if not isinstance(results, dict) or not {"annotations", "categories"} <= results.keys():
        raise UserError(
            "run.not_evaluated",
            f"{path}: no {INFERENCE}/{RESULTS} of an evaluation; if it is a run folder, {evaluation_advice(path)}",
        )
    own = Path(results["annotations"])
    if own.is_file():
        annotations = own
    elif annotations is None:
        message = f"{file}: its annotations {own} are gone; evaluate the run again, or name them with --annotations"
        raise UserError("run.no_annotations", message)
    return EvaluatedRun(path, annotations, results, read_record(path), read_recipe(path))
