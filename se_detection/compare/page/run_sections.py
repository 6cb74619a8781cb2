"""What run folders tell of how a comparison came about: excitations, recipe, commands."""

import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...runs.evaluated_run import EvaluatedRun
from ...visualization.embedded_images import SUFFIXES, image_from_file
from ...visualization.page_blocks import Block, Code, ImageGrid, Table
from ..compare import SIDES
from ..comparison import Comparison

# What people ask first about a recipe.
RECIPE = {
    "MODEL.WEIGHTS": "initial weights",
    "MODEL.META_ARCHITECTURE": "detector",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.RESNETS.DEPTH": "depth",
    "MODEL.RESNETS.NORM": "normalisation",
    "MODEL.BACKBONE.FREEZE_AT": "frozen stages",
    "INPUT.MIN_SIZE_TRAIN": "shorter side, training",
    "INPUT.MIN_SIZE_TEST": "shorter side, test",
    "SOLVER.IMS_PER_BATCH": "images in a batch",
    "SOLVER.BASE_LR": "learning rate",
    "SOLVER.MAX_ITER": "iterations",
    "SOLVER.STEPS": "learning rate falls after",
    "SEED": "seed",
}


def excitation_blocks(runs: Sequence[EvaluatedRun]) -> list[Block]:
    """The plots that `tools/analyze.py excitations` left in the runs' folders, and after them its images.

    Raises:
        UserError: a plot can't be read.
    """
    blocks: list[Block] = []
    for run in runs:
        paths = [path for path in run.path.glob("excitations/**/*") if path.suffix in SUFFIXES]
        paths.sort(key=lambda path: (path.parent.name == "pictures", path.stem.lower()))
        if paths:
            images = [image_from_file(path, f"{run.name}: {path.stem}", title=path.stem) for path in paths]
            blocks.append(ImageGrid(f"The gates of {run.name}", images, large=True))
    return blocks


def recipe_blocks(comparison: Comparison, runs: dict[str, list[EvaluatedRun]]) -> list[Block]:
    """What differs between the arms, and what each has; of run folders with a saved config."""
    blocks: list[Block] = []
    for kind, keys in comparison.recipe.items():
        rows = [[key, *map(_shown, values)] for key, values in keys.items()]
        if rows:
            blocks.append(Table(f"What differs in the configs: {kind}.", ["key", *SIDES], rows))
    pair = [runs[arm][0] for arm in SIDES]
    if any(run.recipe for run in pair):
        columns = [_recipe(run) for run in pair]
        both = [list(row) for row in zip(columns[0], *(column.values() for column in columns), strict=True)]
        first = " (of each arm's first run)" if max(map(len, runs.values())) > 1 else ""
        blocks.append(Table(f"The recipe{first}.", ["setting", *SIDES], both))
    return blocks


def _recipe(run: EvaluatedRun) -> dict[str, str]:
    rows = {name: _shown((run.recipe or {}).get(key, "–")) for key, name in RECIPE.items()}
    data = run.record.get("data", {})
    files = [data.get(name, {}).get("json") or name for name in (run.recipe or {}).get("DATASETS.TRAIN", ())]
    record = {what: _shown(run.record.get(what, "–")) for what in ("device", "versions")}
    return {"training data": _shown(files or "–"), **rows, **record}


def command_blocks(runs: Sequence[EvaluatedRun], command: str | None) -> list[Block]:
    """What was typed for each run, and for the page."""
    commands = [(f"EvaluatedRun {run.name}", run.record.get("command")) for run in runs]
    return [Code(_folded(line), label) for label, line in [*commands, ("This page", command)] if isinstance(line, str)]


def _folded(command: str) -> str:
    """A line of the shell for each option."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    options = [place for place, word in enumerate(words) if word.startswith("--")]
    lines = [words[start:end] for start, end in pairwise([0, *options, len(words)])]
    return " \\\n    ".join(shlex.join(line) for line in lines if line)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value) if value != "" else "none"
