"""Run folders, as tools/train_net.py leaves them, read back and compared."""

import filecmp
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from .compare import Arm, Comparison, Difference, compare, read_json

RESULTS = Path("inference", "results.json")
# What a comparison calls it, and what run.json does.
COSTS = {"parameters": "parameters", "gflops": "backbone_gflops"}


@dataclass(frozen=True)
class Run:
    """An evaluated run: `results` is the content of `inference/results.json`, `record` that of `run.json` or empty."""

    folder: Path
    results: dict[str, Any]
    record: dict[str, Any]

    @property
    def arm(self) -> Arm:
        """The run's name, and what its record tells of its backbone."""
        backbone = str(self.record.get("backbone", "")).removeprefix("build_").removesuffix("_backbone")
        depth = f" {self.record['depth']}" if "depth" in self.record else ""
        size = self.record.get("backbone_input")
        return Arm(self.folder.resolve().name, backbone + depth, (size[0], size[1]) if size else None)

    @property
    def detections(self) -> Path:
        """COCO's results format."""
        return self.folder / "inference" / "coco_instances_results.json"

    @property
    def annotations(self) -> Path:
        """COCO's instances format."""
        return Path(self.results["annotations"])


def read_run(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        UserError: it is no run, or was not evaluated, or its annotations are gone.
    """
    if not (folder / RESULTS).is_file():
        several = sorted(path.parent.name for path in folder.glob("inference/*/results.json"))
        if several:
            raise UserError(
                f"{folder}: evaluated on several data sets ({', '.join(several)}); evaluate it on one of them"
            )
        raise UserError(
            f"{folder}: no {RESULTS}; is it a run folder? evaluate it with "
            f"tools/train_net.py --eval-only --resume ... OUTPUT_DIR {folder}"
        )
    results = read_json(folder / RESULTS)
    record = read_record(folder)
    if not isinstance(results, dict) or not isinstance(results.get("annotations"), str) or "categories" not in results:
        raise UserError(f"{folder / RESULTS} is not an evaluation's of this project; evaluate the run again")
    run = Run(folder, results, record)
    if not run.annotations.is_file():
        raise UserError(f"{folder / RESULTS}: its annotations {run.annotations} are gone; evaluate the run again")
    return run


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a run's `run.json`, or nothing where there is none.

    Raises:
        UserError: the file is no record of a run.
    """
    path = folder / "run.json"
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise UserError(f"{path} is no record of a run; remove it, or evaluate the run again")
    return record


def compare_runs(baseline: Path, candidate: Path, n_bootstrap: int = 1000) -> Comparison:
    """Compares two run folders: what :func:`compare` gives, `parameters` and `gflops`.

    `gflops` are billions of multiply-adds of the backbone. Neither has an interval.

    Raises:
        UserError: a folder is no evaluated run, or the two were evaluated on different data.
    """
    runs = read_run(baseline), read_run(candidate)
    _check_same_data(*runs)
    comparison = compare(runs[0].detections, runs[1].detections, runs[0].annotations, n_bootstrap)
    costs = [{name: _number(run.record.get(key)) for name, key in COSTS.items()} for run in runs]
    differences = {name: Difference(_minus(costs[1][name], costs[0][name])) for name in COSTS}
    return replace(
        comparison,
        baseline={**comparison.baseline, **costs[0]},
        candidate={**comparison.candidate, **costs[1]},
        difference={**comparison.difference, **differences},
        arms=(runs[0].arm, runs[1].arm),
    )


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _check_same_data(baseline: Run, candidate: Run) -> None:
    if baseline.results["categories"] != candidate.results["categories"]:
        raise UserError(
            f"{baseline.folder} and {candidate.folder} have different categories; compare runs on the same data"
        )
    if not filecmp.cmp(baseline.annotations, candidate.annotations, shallow=False):
        raise UserError(
            f"{baseline.folder} was evaluated on {baseline.annotations} and {candidate.folder} on "
            f"{candidate.annotations}; compare runs on the same data"
        )
