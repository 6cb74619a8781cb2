"""Compares run folders: checks that they are comparable, and adds the parameters and GFLOPs of both detectors."""

import filecmp
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..config.timm_config import words_for_backbone
from ..data.coco_files import data_difference
from ..data.coco_format import is_number
from ..errors import UserError, counted
from ..runs.evaluated_run import EvaluatedRun, read_run
from ..runs.recipe import differing, is_of_backbone
from ..runs.run_folder import BAD_IMAGES, BEST, CONFIG
from .compare import compare
from .intervals import Difference
from .result import HEADLINE, ROLES, ComparedModel, Comparison

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
    recipe, obstacles = _recipe(models)
    obstacles += _checkpoint_obstacles(runs)
    if obstacles and not force:
        raise UserError("compare.not_comparable", f"{'; '.join(obstacles)}; --force compares them anyway")

    detections = [[run.detections for run in model] for model in models]
    comparison = compare(detections[0], detections[1], runs[0].annotations, n_bootstrap)
    costs = [{name: _cost(model, key) for name, key in COSTS.items()} for model in models]
    differences = {}
    for name in COSTS:
        before, after = (cost[name] for cost in costs)
        differences[name] = Difference(None if before is None or after is None else after - before)
    unknown = ", ".join(run.name for run in runs if run.recipe is None)
    notes = [f"without a saved config, the recipe was not checked: {unknown}"] if unknown else []
    unknown = ", ".join(run.name for run in runs if run.results and run.checkpoint is None)
    notes += [f"the evaluated checkpoint is not recorded, and was not checked: {unknown}"] if unknown else []
    notes += [*_notes_on_best(runs), *_notes_on_other_tasks(models)]
    return replace(
        comparison,
        baseline=comparison.baseline | costs[0],
        candidate=comparison.candidate | costs[1],
        difference=comparison.difference | differences,
        verdict=comparison.verdict + (" - but the runs are not comparable, see the notes" if obstacles else ""),
        notes=[*obstacles, *notes, *comparison.notes],
        names={role: [str(run.path) for run in model] for role, model in zip(ROLES, models, strict=True)},
        recipe=recipe,
        checkpoints={role: [run.checkpoint for run in model] for role, model in zip(ROLES, models, strict=True)},
        models={role: _describe(model) for role, model in zip(ROLES, models, strict=True)},
    )


def _read_models(paths: list[list[Path]], annotations: Path | None) -> list[list[EvaluatedRun]]:
    """The runs of both models; results files get the annotations of the first run folder, unless some are given.

    Raises:
        UserError: a run is given twice, or the runs have different data.
    """
    resolved = [path.resolve() for own in paths for path in own]
    for path in resolved:
        if resolved.count(path) > 1:
            raise UserError("compare.same_run", f"{path} is given twice; give different runs")
    if annotations is not None and not annotations.is_file():
        raise UserError("file.unreadable", f"--annotations {annotations}: there is no such file; check its path")
    folders = [path for own in paths for path in own if not path.is_file()]
    known = annotations or (read_run(folders[0]).annotations if folders else None)
    models = [[read_run(path, known) for path in own] for own in paths]
    first, *others = (run for model in models for run in model)
    evaluated = {str(run.path): run.annotations for run in (first, *others)}
    if annotations is not None:
        evaluated = {"--annotations": annotations, **evaluated}
    (name, data), *rest = evaluated.items()
    for other, file in rest:
        if what := file != data and data_difference(data, file):
            message = f"{name} ({data}) and {other} ({file}) have different {what}; compare runs on the same data"
            raise UserError("compare.different_data", message)
    for run in others:
        if first.results and run.results and first.results["categories"] != run.results["categories"]:
            message = f"{first.path} and {run.path} have different categories; compare runs on the same data"
            raise UserError("compare.different_data", message)
    return models


def _recipe(models: list[list[EvaluatedRun]]) -> tuple[dict[str, dict[str, list[Any]]], list[str]]:
    """The config keys in which the models differ, and a line on each pair of runs that should agree but doesn't."""
    obstacles = []
    for model in models:
        first, seeds = model[0], dict[int, Path]()
        for run in model:
            found = _differences(first, run)
            # A run that was only evaluated has its own weights; trained runs start from the same pre-trained ones.
            if not all(item.path.joinpath(CONFIG).is_file() for item in (first, run)):
                found.pop("MODEL.WEIGHTS", None)
            if found:
                obstacles.append(f"{first.path} and {run.path} are not runs of one detector: {_format_keys(found)}")
            seed = (run.recipe or {}).get("SEED", -1)
            if seed >= 0 and seed in seeds:
                obstacles.append(f"{seeds[seed]} and {run.path} have the same SEED {seed}; runs must differ in SEED")
            seeds[seed] = run.path
    pair = [model[0] for model in models]
    between = _differences(*pair)
    backbone = {key: values for key, values in between.items() if is_of_backbone(key)}
    others = {key: values for key, values in between.items() if key not in backbone}
    if others:
        obstacles.append(f"{pair[0].path} and {pair[1].path} have different recipes: {_format_keys(others)}")
    return {"backbone and weights": backbone, "others": others}, obstacles


def _checkpoint_obstacles(runs: list[EvaluatedRun]) -> list[str]:
    """A line on each run whose training is not finished, or that was not evaluated as it is now."""
    obstacles = []
    for run in runs:
        checkpoint = run.checkpoint
        if run.unfinished:
            obstacles.append(f"{run.path} is not finished (its last checkpoint is {run.unfinished})")
        elif checkpoint and run.last_checkpoint and checkpoint.file not in (run.last_checkpoint, BEST):
            last = run.last_checkpoint
            obstacles.append(f"{run.path} was evaluated with {checkpoint}, and its last checkpoint is {last}")
        if checkpoint and checkpoint.has_changed(run.path):
            obstacles.append(f"{run.path}: {checkpoint.file} has changed since it was evaluated; evaluate it again")
    known = [(run, run.checkpoint) for run in runs if run.checkpoint and run.checkpoint.iteration is not None]
    # Best checkpoints have their own iterations; so may last ones, with another number of processes.
    alike = all(checkpoint.is_best for _, checkpoint in known) or all(
        checkpoint.file == run.last_checkpoint for run, checkpoint in known
    )
    if not obstacles and not alike and len({checkpoint.iteration for _, checkpoint in known}) > 1:
        which = ", ".join(f"{run.path} with {checkpoint}" for run, checkpoint in known)
        obstacles.append(f"the runs were evaluated after different iterations: {which}")
    return obstacles


def _notes_on_best(runs: list[EvaluatedRun]) -> list[str]:
    best = ", ".join(run.name for run in runs if run.checkpoint and run.checkpoint.is_best)
    return [f"{best}: {BEST} was evaluated; its AP is too high if it was chosen on these images"] if best else []


def _notes_on_other_tasks(models: list[list[EvaluatedRun]]) -> list[str]:
    """A note with the AP of masks and of keypoints, which have no intervals and no verdict."""
    notes = []
    for task, what in (("segm", "masks"), ("keypoints", "keypoints")):
        metrics = [[found for run in model if isinstance(found := run.results.get(task), dict)] for model in models]
        if any(metrics):
            pairs = (f"{name} {' and '.join(_mean(own, key) for own in metrics)}" for key, name in HEADLINE.items())
            notes.append(f"only boxes are compared; {what} have {', '.join(pairs)}, without intervals")
    return notes


def _mean(metrics: list[dict[str, Any]], key: str) -> str:
    values = [found[key] for found in metrics if is_number(found.get(key))]
    return f"{fmean(values):.2f}" if values else "undefined"


def _differences(*pair: EvaluatedRun) -> dict[str, list[Any]]:
    """Both values of all that differs between two recipes; empty if one is unknown."""
    first, other = (run.recipe for run in pair)
    if first is None or other is None:
        return {}
    found = differing(first, other)
    data = [_training_data(run) for run in pair]
    if len(data[0]) != len(data[1]) or not all(map(_is_same_data, data[0].items(), data[1].items())):
        found["DATASETS.TRAIN"] = [
            [f"{name} ({path})" if path else name for name, path in items.items()] for items in data
        ]
    skipped = [run.skipped for run in pair]
    if skipped[0] != skipped[1]:
        found[BAD_IMAGES] = [counted(len(names), "image") for names in skipped]
    partial = [bool(run.record.get("allow_partial_backbone")) for run in pair]
    return found | ({"--allow-partial-backbone": partial} if partial[0] != partial[1] else {})


def _training_data(run: EvaluatedRun) -> dict[str, str | None]:
    """The names of the training sets and, if recorded, their annotation files."""
    files = run.record.get("data", {})
    return {name: files.get(name, {}).get("json") for name in (run.recipe or {})["DATASETS.TRAIN"]}


def _is_same_data(first: tuple[str, str | None], other: tuple[str, str | None]) -> bool:
    """Compares the content of the annotation files, or the names of the sets where a file can't be read."""
    (name, path), (other_name, other_path) = first, other
    if path and other_path and os.path.isfile(path) and os.path.isfile(other_path):
        return filecmp.cmp(path, other_path, shallow=False)
    return name == other_name


def _format_keys(differences: dict[str, list[Any]]) -> str:
    return ", ".join(f"{key} ({first!r} and {other!r})" for key, (first, other) in differences.items())


def _describe(runs: list[EvaluatedRun]) -> ComparedModel:
    """The model's name and recorded backbone; several runs get the common prefix of the names."""
    first = runs[0]
    network = first.record.get("depth", first.record.get("network", ""))
    backbone = words_for_backbone(first.record.get("backbone", ""), network, first.record.get("added_se", ())).strip()
    name = first.name
    if len(runs) > 1:
        common = os.path.commonprefix([run.name for run in runs]).rstrip("-_. ")  # noqa: RUF071  characters are meant
        name = f"{common or first.path.resolve().parent.name} ({counted(len(runs), 'run')})"
    size = first.record.get("backbone_input")
    return ComparedModel(name, backbone, (size[0], size[1]) if size else None)


def _cost(runs: list[EvaluatedRun], key: str) -> float | None:
    return next((run.record[key] for run in runs if key in run.record), None)
