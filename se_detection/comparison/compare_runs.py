"""Compares run folders: checks that they are comparable, and adds the parameters and GFLOPs of both detectors."""

import filecmp
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..data.coco_files import data_difference
from ..errors import UserError
from ..runs.evaluated_run import EvaluatedRun, read_run
from ..runs.recipe import differing, is_of_backbone
from ..runs.run_folder import BAD_IMAGES, CONFIG
from .compare import compare
from .intervals import Difference
from .result import ROLES, ComparedModel, Comparison

# Names in a comparison, and the keys in run.json.
COSTS = {"parameters": "parameters", "gflops": "backbone_gflops"}


def compare_runs(
    baseline: Path | Sequence[Path],
    candidate: Path | Sequence[Path],
    n_bootstrap: int = 1000,
    *,
    annotations: Path | None = None,
    force: bool = False,
) -> Comparison:
    """Compares run folders or COCO results files: the result of :func:`compare` with `parameters` and `gflops`.

    `gflops` are billions of multiply-adds of the backbone. Neither has an interval.

    Args:
        baseline: a run, or several training runs of one detector.
        candidate: as `baseline`.
        n_bootstrap: the number of bootstrap samples.
        annotations: COCO instances; needed if all runs are results files.
        force: also compare runs with different recipes and unfinished runs, with a note.

    Raises:
        UserError: a path is not an evaluated run, or the runs can't be compared.
    """
    paths = [[given] if isinstance(given, Path) else list(given) for given in (baseline, candidate)]
    models = _read_models(paths, annotations)
    runs = [run for model in models for run in model]
    for run in runs[1:]:
        _check_same_data(runs[0], run)
    recipe, obstacles = _recipe(models)
    obstacles += [
        f"{run.path} is not finished (its last checkpoint is {run.unfinished})" for run in runs if run.unfinished
    ]
    if obstacles and not force:
        raise UserError(f"{'; '.join(obstacles)}; --force compares them anyway")

    detections = [[run.detections for run in model] for model in models]
    comparison = compare(detections[0], detections[1], runs[0].annotations, n_bootstrap)
    costs = [{name: _cost(model, key) for name, key in COSTS.items()} for model in models]
    differences = {name: Difference(_minus(costs[1][name], costs[0][name])) for name in COSTS}
    warning = " - but the runs are not comparable, see the notes" if obstacles else ""
    return replace(
        comparison,
        baseline={**comparison.baseline, **costs[0]},
        candidate={**comparison.candidate, **costs[1]},
        difference={**comparison.difference, **differences},
        verdict=comparison.verdict + warning,
        notes=[*obstacles, *_notes_on_recipes(runs), *comparison.notes],
        names={role: [str(run.path) for run in model] for role, model in zip(ROLES, models, strict=True)},
        recipe=recipe,
        models={role: _describe(model) for role, model in zip(ROLES, models, strict=True)},
    )


def _read_models(paths: list[list[Path]], annotations: Path | None) -> list[list[EvaluatedRun]]:
    """The runs of both models; results files get the annotations of the first run folder, unless some are given."""
    resolved = [path.resolve() for own in paths for path in own]
    for path in resolved:
        if resolved.count(path) > 1:
            raise UserError(f"{path} is given twice; give different runs")
    if annotations is not None and not annotations.is_file():
        raise UserError(f"--annotations {annotations}: there is no such file")
    folders = [path for own in paths for path in own if not path.is_file()]
    known = annotations or (read_run(folders[0]).annotations if folders else None)
    models = [[read_run(path, known) for path in own] for own in paths]
    for run in (run for model in models for run in model):
        what = annotations and data_difference(annotations, run.annotations)
        if what:
            raise UserError(
                f"--annotations {annotations} and {run.annotations}, on which {run.path} was evaluated, have different "
                f"{what}; compare runs on the same data"
            )
    return models


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


def _recipe(models: list[list[EvaluatedRun]]) -> tuple[dict[str, dict[str, list[Any]]], list[str]]:
    """The config keys in which the models differ, and a line on each pair of runs that should agree but doesn't."""
    obstacles = []
    for model in models:
        first = model[0]
        for run in model[1:]:
            found = _differences(first, run)
            # A run that was only evaluated has its own weights; trained runs start from the same pre-trained ones.
            if not all(item.path.joinpath(CONFIG).is_file() for item in (first, run)):
                found.pop("MODEL.WEIGHTS", None)
            if found:
                obstacles.append(f"{first.path} and {run.path} are not runs of one detector: {_format_keys(found)}")
        obstacles += _same_seeds(model)
    between = _differences(models[0][0], models[1][0])
    backbone = {key: values for key, values in between.items() if is_of_backbone(key)}
    others = {key: values for key, values in between.items() if key not in backbone}
    if others:
        obstacles.append(f"{models[0][0].path} and {models[1][0].path} have different recipes: {_format_keys(others)}")
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
    """The names of the training sets and, if recorded, their annotation files."""
    files = run.record.get("data", {})
    return [(name, files.get(name, {}).get("json")) for name in (run.recipe or {})["DATASETS.TRAIN"]]


def _is_same_data(first: list[tuple[str, str | None]], other: list[tuple[str, str | None]]) -> bool:
    """Compares the content of the annotation files, or the names of the sets where a file can't be read."""
    if len(first) != len(other):
        return False
    for (name, path), (other_name, other_path) in zip(first, other, strict=True):
        if path and other_path and os.path.isfile(path) and os.path.isfile(other_path):
            if not filecmp.cmp(path, other_path, shallow=False):
                return False
        elif name != other_name:
            return False
    return True


def _same_seeds(runs: list[EvaluatedRun]) -> list[str]:
    seeds: dict[int, Path] = {}
    lines = []
    for run in runs:
        seed = (run.recipe or {}).get("SEED", -1)
        if seed >= 0 and seed in seeds:
            lines.append(f"{seeds[seed]} and {run.path} have the same SEED {seed}; runs must differ in SEED")
        seeds[seed] = run.path
    return lines


def _format_keys(differences: dict[str, list[Any]]) -> str:
    return ", ".join(f"{key} ({first!r} and {other!r})" for key, (first, other) in differences.items())


def _notes_on_recipes(runs: list[EvaluatedRun]) -> list[str]:
    unknown = [run.name for run in runs if run.recipe is None]
    return [f"without a saved config, the recipe was not checked: {', '.join(unknown)}"] if unknown else []


def _describe(runs: list[EvaluatedRun]) -> ComparedModel:
    """The model's name and recorded backbone; several runs get the common prefix of the names."""
    first = runs[0]
    backbone = str(first.record.get("backbone", "")).removeprefix("build_").removesuffix("_backbone")
    depth = f" {first.record['depth']}" if "depth" in first.record else ""
    size = first.record.get("backbone_input")
    model = ComparedModel(first.name, backbone + depth, (size[0], size[1]) if size else None)
    if len(runs) == 1:
        return model
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in runs), strict=False))
    common = "".join(letters[0] for letters in same).rstrip("-_. ") or runs[0].path.resolve().parent.name
    return replace(model, name=f"{common} ({len(runs)} runs)")


def _cost(runs: list[EvaluatedRun], key: str) -> float | None:
    values = [value for run in runs if isinstance(value := run.record.get(key), int | float)]
    return values[0] if values else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
