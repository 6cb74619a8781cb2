"""EvaluatedRun folders, as tools/train_net.py leaves them, and bare files of results, read back."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.coco_format import Rule, is_name, problems
from ..errors import UserError
from ..files import read_json
from .bad_images import read_bad_images
from .recipe import Recipe, read_recipe
from .record import _are_names, _is_name_or_none, read_record

RESULTS = Path("inference", "results.json")
DETECTIONS = "coco_instances_results.json"


# What is made use of.
RESULTS_RULES = {
    "annotations": Rule("a path", is_name),
    "categories": Rule("a list of names", _are_names),
    "image_root": Rule("a path or null", _is_name_or_none, required=False),
}


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluated run: `results` is the content of `inference/results.json`, `record` that of `run.json`, or empty.

    Of a bare file of COCO results, `results`, `record` and `recipe` are empty.
    """

    path: Path
    annotations: Path
    results: dict[str, Any]
    record: dict[str, Any]
    recipe: Recipe | None

    @property
    def name(self) -> str:
        """The folder's, or the file's."""
        path = self.path.resolve()
        if path.is_file():
            path = path.parent if path.name == DETECTIONS else path.with_suffix("")
            path = path.parent if path.name == "inference" else path
        return path.name

    @property
    def detections(self) -> Path:
        """COCO's results format."""
        return self.path if self.path.is_file() else self.path / "inference" / DETECTIONS

    @property
    def skipped(self) -> set[str]:
        """The names of the training images that could not be used.

        Raises:
            UserError: the list can't be read.
        """
        return {Path(image.file_name).name for image in read_bad_images(self.path)}

    @property
    def unfinished(self) -> str:
        """The last checkpoint of a training that did not come to its end; otherwise empty."""
        tag = self.path / "last_checkpoint"
        last = tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else ""
        return "" if last == "model_final.pth" else last


def read_run(path: Path, annotations: Path | None = None) -> EvaluatedRun:
    """Reads a run folder or, with annotations, a bare file of COCO results.

    Args:
        annotations: COCO's instances, instead of those that a folder names.

    Raises:
        UserError: it is no run, or was not evaluated, or its annotations are unknown or gone.
    """
    if path.is_file():
        if annotations is None:
            raise UserError(f"{path} is a bare file of results; name what it was evaluated on with --annotations")
        return EvaluatedRun(path, annotations, {}, {}, None)
    if not (path / RESULTS).is_file():
        several = sorted(found.parent.name for found in path.glob("inference/*/results.json"))
        if several:
            raise UserError(
                f"{path}: evaluated on several data sets ({', '.join(several)}); evaluate it on one of them"
            )
        raise UserError(
            f"{path}: no {RESULTS}; is it a run folder? evaluate it with "
            f"tools/train_net.py --eval-only --resume ... OUTPUT_DIR {path}"
        )
    results = read_json(path / RESULTS)
    record = read_record(path)
    if wrong := next(problems(results, RESULTS_RULES), None):
        raise UserError(
            f"{path / RESULTS} is not an evaluation's of this project: it {wrong.text}, or evaluate the run again"
        )
    own = Path(results["annotations"])
    if os.path.isfile(own):
        annotations = own
    elif annotations is None:
        raise UserError(
            f"{path / RESULTS}: its annotations {own} are gone; evaluate the run again, or name them with --annotations"
        )
    return EvaluatedRun(path, annotations, results, record, read_recipe(path))
