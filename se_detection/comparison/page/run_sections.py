"""Sections on the run folders of a comparison: excitations, recipe and commands."""

import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...runs.evaluated_run import EvaluatedRun
from ...runs.run_folder import EXCITATIONS
from ...visualization.embedded_images import SUFFIXES, embed_file
from ...visualization.page_blocks import Block, Code, ImageGrid, Table
from ..result import ROLES, Comparison

# The config keys in the table of the recipe, and their names there.
RECIPE = {
    "MODEL.WEIGHTS": "initial weights",
    "MODEL.META_ARCHITECTURE": "detector",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.RESNETS.DEPTH": "depth",
    "MODEL.RESNETS.NORM": "normalization",
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
    """The plots, then the images, that `se-det analyze excitations` wrote into the run folders.

    Raises:
        UserError: a plot can't be read.
    """
    blocks: list[Block] = []
    for run in runs:
        paths = [path for path in run.path.glob(f"{EXCITATIONS}/**/*") if path.suffix in SUFFIXES]
        paths.sort(key=lambda path: (path.parent.name == "pictures", path.stem.lower()))
        if paths:
            images = [embed_file(path, f"{run.name}: {path.stem}", title=path.stem) for path in paths]
            blocks.append(ImageGrid(f"The gates of {run.name}", images, large=True))
    return blocks


def recipe_blocks(comparison: Comparison, runs: dict[str, list[EvaluatedRun]]) -> list[Block]:
    """The differences between the recipes, and both recipes, for run folders with a saved config."""
    blocks: list[Block] = []
    for kind, keys in comparison.recipe.items():
        rows = [[key, *map(_shown, values)] for key, values in keys.items()]
        if rows:
            blocks.append(Table(f"Differences between the configs: {kind}.", ["key", *ROLES], rows))
    pair = [runs[role][0] for role in ROLES]
    if any(run.recipe for run in pair):
        columns = [_recipe(run) for run in pair]
        both = [list(row) for row in zip(columns[0], *(column.values() for column in columns), strict=True)]
        first = " (of each model's first run)" if max(map(len, runs.values())) > 1 else ""
        blocks.append(Table(f"The recipe{first}.", ["setting", *ROLES], both))
    return blocks


def _recipe(run: EvaluatedRun) -> dict[str, str]:
    rows = {name: _shown((run.recipe or {}).get(key, "–")) for key, name in RECIPE.items()}
    data = run.record.get("data", {})
    files = [data.get(name, {}).get("json") or name for name in (run.recipe or {}).get("DATASETS.TRAIN", ())]
    record = {what: _shown(run.record.get(what, "–")) for what in ("device", "versions")}
    return {"training data": _shown(files or "–"), **rows, **record}


def command_blocks(runs: Sequence[EvaluatedRun], command: str | None) -> list[Block]:
    """The command lines of the runs and of the page."""
    commands = [(f"Run {run.name}", run.record.get("command")) for run in runs]
    return [Code(_folded(line), label) for label, line in [*commands, ("This page", command)] if isinstance(line, str)]


def _folded(command: str) -> str:
    """The command with a line for each option."""
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
