"""The checkpoint that was evaluated, which an evaluation records in its `results.json`."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import file_digest, read_json, write_json
from .run_folder import BEST, RESULTS

KEY = "checkpoint"


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """The evaluated weights.

    Args:
        file: the path, relative to the run folder for a file inside of it; None for weights that were not saved.
        iteration: the last iteration of training, counted from 0; None if the file does not record it.
        sha256: the digest of the file.
    """

    file: str | None
    iteration: int | None
    sha256: str | None

    @classmethod
    def describe(cls, path: Path | None, iteration: object, run: Path) -> "EvaluatedCheckpoint":
        """The description of a file, or without one of the weights after an iteration of a training."""
        known = iteration if isinstance(iteration, int) else None
        if path is None or not path.is_file():
            return cls(None, known, None)
        file, folder = path.resolve(), run.resolve()
        inside = file.relative_to(folder) if file.is_relative_to(folder) else file
        return cls(inside.as_posix(), known, file_digest(file))

    @classmethod
    def recorded(cls, results: dict[str, Any]) -> "EvaluatedCheckpoint | None":
        """The checkpoint in the content of `results.json`; None if it does not record one."""
        content = results.get(KEY)
        if not isinstance(content, dict):
            return None
        file, iteration, sha256 = (content.get(name) for name in ("file", "iteration", "sha256"))
        return cls(
            file if isinstance(file, str) else None,
            iteration if isinstance(iteration, int) else None,
            sha256 if isinstance(sha256, str) else None,
        )

    def __str__(self) -> str:
        iteration = "" if self.iteration is None else f" (iteration {self.iteration})"
        return f"{self.file or 'weights that were not saved'}{iteration}"

    @property
    def is_best(self) -> bool:
        """Whether it was chosen by its metric."""
        return self.file is not None and Path(self.file).name == BEST

    def has_changed(self, run: Path) -> bool:
        """Whether the file has another content now; False if it is gone."""
        path = Path(run, self.file or "")
        return self.sha256 is not None and path.is_file() and file_digest(path) != self.sha256


def record_checkpoint(checkpoint: EvaluatedCheckpoint, folders: Iterable[Path]) -> None:
    """Adds the checkpoint to the `results.json` that an evaluation has written in each folder.

    A file that has one is of an earlier evaluation, and stays: an evaluator of a user may write no such file.
    """
    for path in (folder / RESULTS for folder in folders):
        if path.is_file() and KEY not in (results := read_json(path)):
            write_json(path, {**results, KEY: asdict(checkpoint)}, indent=2)
