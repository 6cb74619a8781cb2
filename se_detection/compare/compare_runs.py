"""The comparison of run folders: refused where it would mean nothing, and with the costs of both detectors."""

import filecmp
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..data.coco_files import data_difference
from ..errors import UserError
from ..runs.bad_images import BAD_IMAGES
from ..runs.evaluated_run import EvaluatedRun, read_run
from ..runs.recipe import differing, is_of_backbone
from .compare import SIDES, compare
from .comparison import ComparedModel, Comparison
from .intervals import Difference

# What a comparison calls it, and what run.json does.
COSTS = {"parameters": "parameters", "gflops": "backbone_gflops"}


def compare_runs(
    baseline: Path | Sequence[Path],
    candidate: Path | Sequence[Path],
    n_bootstrap: int = 1000,
    *,
    annotations: Path | None = None,
    force: bool = False,
) -> Comparison:
    """Compares run folders, or bare files of COCO results: what :func:`compare` gives, `parameters` and `gflops`.

    `gflops` are billions of multiply-adds of the backbone. Neither has an interval.

    Args:
        baseline: a run, or several training runs of one detector.
        candidate: the same.
        n_bootstrap: how often images are drawn.
        annotations: COCO's instances; needed where all runs are bare files.
        force: runs of different recipes, and unfinished ones, are compared all the same, with a note.

    Raises:
        UserError: a path is no evaluated run, or what is there can't be compared.
    """
    paths = [[arm] if isinstance(arm, Path) else list(arm) for arm in (baseline, candidate)]
    arms = _read_arms(paths, annotations)
    runs = [run for arm in arms for run in arm]
    for run in runs[1:]:
        _check_same_data(runs[0], run)
    recipe, obstacles = _recipe(arms)
    obstacles += [
        f"{run.path} is not finished (its last checkpoint is {run.unfinished})" for run in runs if run.unfinished
    ]
    if obstacles and not force:
        raise UserError(f"{'; '.join(obstacles)}; --force compares them all the same")

    detections = [[run.detections for run in arm] for arm in arms]
    comparison = compare(detections[0], detections[1], runs[0].annotations, n_bootstrap)
    costs = [{name: _cost(arm, key) for name, key in COSTS.items()} for arm in arms]
    differences = {name: Difference(_minus(costs[1][name], costs[0][name])) for name in COSTS}
    warning = " - but the runs can't be compared as they are, see the notes" if obstacles else ""
    return replace(
        comparison,
        baseline={**comparison.baseline, **costs[0]},
        candidate={**comparison.candidate, **costs[1]},
        difference={**comparison.difference, **differences},
        verdict=comparison.verdict + warning,
        notes=[*obstacles, *_unchecked(runs), *comparison.notes],
        names={name: [str(run.path) for run in arm] for name, arm in zip(SIDES, arms, strict=True)},
        recipe=recipe,
        arms=(_arm(arms[0]), _arm(arms[1])),
    )


def _read_arms(paths: list[list[Path]], annotations: Path | None) -> list[list[EvaluatedRun]]:
    """The runs; bare files are taken to be of the annotations of the first folder, where none are given."""
    resolved = [path.resolve() for arm in paths for path in arm]
    for path in resolved:
        if resolved.count(path) > 1:
            raise UserError(f"{path} is given twice; name different runs")
    if annotations is not None and not annotations.is_file():
        raise UserError(f"--annotations {annotations}: there is no such file")
    folders = [path for arm in paths for path in arm if not path.is_file()]
    known = annotations or (read_run(folders[0]).annotations if folders else None)
    arms = [[read_run(path, known) for path in arm] for arm in paths]
    for run in (run for arm in arms for run in arm):
        what = annotations and data_difference(annotations, run.annotations)
        if what:
            raise UserError(
                f"--annotations {annotations} and {run.annotations}, on which {run.path} was evaluated, have different "
                f"{what}; compare runs on the same data"
            )
    return arms


def _check_same_data(first: EvaluatedRun, other: EvaluatedRun) -> None:
    if first.results and other.results and first.results["categories"] != other.results["categories"]:
        raise UserError(f"{first.path} and {other.path} have different categories; compare runs on the same data")
    if first.annotations == other.annotations:
        return
    what = data_difference(first.annotations, other.annotations)
    if what:
        raise UserError(
            f"{first.path} was evaluated on {first.annotations} and {other.path} on {other.annotations}, which have "
            f"different {what}; compare runs on the same data"
        )


def _recipe(arms: list[list[EvaluatedRun]]) -> tuple[dict[str, dict[str, list[Any]]], list[str]]:
    """The config keys in which the arms differ, and a line on each pair of runs that should agree and does not."""
    obstacles = []
    for arm in arms:
        for run in arm[1:]:
            # One arm's weights are the same pre-trained ones, but where each run was only evaluated, they are its own.
            own = (
                {} if all(item.path.joinpath("config.yaml").is_file() for item in (arm[0], run)) else {"MODEL.WEIGHTS"}
            )
            found = {key: values for key, values in _differences(arm[0], run).items() if key not in own}
            if found:
                obstacles.append(f"{arm[0].path} and {run.path} are not runs of one detector: {_listed(found)}")
        obstacles += _same_seeds(arm)
    between = _differences(arms[0][0], arms[1][0])
    backbone = {key: values for key, values in between.items() if is_of_backbone(key)}
    others = {key: values for key, values in between.items() if key not in backbone}
    if others:
        obstacles.append(f"{arms[0][0].path} and {arms[1][0].path} are not of one recipe: {_listed(others)}")
    return {"backbone and weights": backbone, "others": others}, obstacles


def _differences(first: EvaluatedRun, other: EvaluatedRun) -> dict[str, list[Any]]:
    if first.recipe is None or other.recipe is None:
        return {}
    found = differing(first.recipe, other.recipe)
    data = [_training_data(run) for run in (first, other)]
    if not _is_same_data(*data):
        found["DATASETS.TRAIN"] = [[f"{name} ({path})" if path else name for name, path in items] for items in data]
    partial = [bool(run.record.get("allow_partial_backbone")) for run in (first, other)]
    found |= {"--allow-partial-backbone": partial} if partial[0] != partial[1] else {}
    skipped = [run.skipped for run in (first, other)]
    return found | ({BAD_IMAGES: [f"{len(names)} images" for names in skipped]} if skipped[0] != skipped[1] else {})


def _training_data(run: EvaluatedRun) -> list[tuple[str, str | None]]:
    """The names of the data sets and, where the record knows them, their annotations."""
    files = run.record.get("data", {})
    return [(name, files.get(name, {}).get("json")) for name in (run.recipe or {})["DATASETS.TRAIN"]]


def _is_same_data(first: list[tuple[str, str | None]], other: list[tuple[str, str | None]]) -> bool:
    """By the content of the annotations; by name, where they can't be read."""
    if len(first) != len(other):
        return False
    for (name, path), (other_name, other_path) in zip(first, other, strict=True):
        if path and other_path and os.path.isfile(path) and os.path.isfile(other_path):
            if not filecmp.cmp(path, other_path, shallow=False):
                return False
        elif name != other_name:
            return False
    return True


def _same_seeds(arm: list[EvaluatedRun]) -> list[str]:
    seeds: dict[int, Path] = {}
    lines = []
    for run in arm:
        seed = (run.recipe or {}).get("SEED", -1)
        if seed >= 0 and seed in seeds:
            lines.append(f"{seeds[seed]} and {run.path} have the same SEED {seed}, and say nothing of other trainings")
        seeds[seed] = run.path
    return lines


def _listed(differences: dict[str, list[Any]]) -> str:
    return ", ".join(f"{key} ({first!r} and {other!r})" for key, (first, other) in differences.items())


def _unchecked(runs: list[EvaluatedRun]) -> list[str]:
    unknown = [run.name for run in runs if run.recipe is None]
    return [f"without a saved config, whether the recipe is the same was not checked: {', '.join(unknown)}"] * bool(
        unknown
    )


def _arm(runs: list[EvaluatedRun]) -> ComparedModel:
    """The name of a run, or what the names of several begin with, and what the record tells of the backbone."""
    first = runs[0]
    backbone = str(first.record.get("backbone", "")).removeprefix("build_").removesuffix("_backbone")
    depth = f" {first.record['depth']}" if "depth" in first.record else ""
    size = first.record.get("backbone_input")
    arm = ComparedModel(first.name, backbone + depth, (size[0], size[1]) if size else None)
    if len(runs) == 1:
        return arm
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in runs), strict=False))
    common = "".join(letters[0] for letters in same).rstrip("-_. ") or runs[0].path.resolve().parent.name
    return replace(arm, name=f"{common} ({len(runs)} runs)")


def _cost(runs: list[EvaluatedRun], key: str) -> float | None:
    values = [value for run in runs if isinstance(value := run.record.get(key), int | float)]
    return values[0] if values else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
