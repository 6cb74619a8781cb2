"""What the saved configs of runs say about whether they can be compared."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from detectron2.config import get_cfg

from ..config.defaults import flatten
from ..config.yaml_file import read_yaml
from ..data.coco_format import Rule, is_integer, is_name, problems
from ..errors import UserError

# What makes an arm: the backbone's layers, its weights, and how these want their pixels.
BACKBONE = (
    *("MODEL.BACKBONE.NAME", "MODEL.SE.*", "MODEL.RESNETS.*", "MODEL.WEIGHTS"),
    *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
)
# How a backbone is trained, and what the detector takes from it, are the recipe's.
NOT_BACKBONE = ("MODEL.RESNETS.NORM", "MODEL.RESNETS.OUT_FEATURES")
# What makes no difference to a detector that anybody could repeat, and what is compared by its content elsewhere.
INDIFFERENT = (
    *("OUTPUT_DIR", "SEED", "VERSION", "VIS_PERIOD", "CUDNN_BENCHMARK", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("DATASETS.TRAIN", "DATASETS.TEST", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS", "SOLVER.CHECKPOINT_PERIOD"),
    *("SOLVER.CHECKPOINTS_TO_KEEP", "SOLVER.BEST_METRIC"),
)
# A C4 detector has res5 in its heads: these two differ as the backbones do.
SAME_HEADS = {"SERes5ROIHeads": "Res5ROIHeads"}
# What is made use of; the rest is compared, whatever it is.
RULES = {
    "DATASETS.TRAIN": Rule("a list of names", lambda value: isinstance(value, list) and all(map(is_name, value))),
    "MODEL.ROI_HEADS.NAME": Rule("a name", is_name),
    "SEED": Rule("an integer", is_integer),
}

Recipe = dict[str, Any]


def read_recipe(folder: Path) -> Recipe | None:
    """A run's config by full key: that of its training, with the keys of tests as evaluated since; None if unknown.

    Raises:
        UserError: a file is no saved config.
    """
    training, evaluation = folder / "config.yaml", folder / "inference" / "config.yaml"
    if not training.is_file():
        return _read(evaluation) if evaluation.is_file() else None
    recipe = _read(training)
    if evaluation.is_file() and evaluation.stat().st_mtime > training.stat().st_mtime:
        recipe |= {key: value for key, value in _read(evaluation).items() if "TEST" in key}
    return recipe


def _read(path: Path) -> Recipe:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no saved config; evaluate the run again")
    # A run of an older version did what is the default now.
    recipe = flatten(get_cfg()) | flatten(content)
    if wrong := next(problems(recipe, RULES), None):
        raise UserError(f"{path} is no saved config: it {wrong.text}, or evaluate the run again")
    heads = recipe["MODEL.ROI_HEADS.NAME"]
    return recipe | {"MODEL.ROI_HEADS.NAME": SAME_HEADS.get(heads, heads)}


def differing(first: Recipe, second: Recipe) -> dict[str, list[Any]]:
    """Both values of each key that differs, but for those that make no difference."""
    keys = sorted(first.keys() | second.keys())
    values = {key: [first.get(key), second.get(key)] for key in keys if key not in INDIFFERENT}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def is_of_backbone(key: str) -> bool:
    """Whether the two arms of a comparison may differ in this key."""
    return key not in NOT_BACKBONE and any(fnmatch(key, pattern) for pattern in BACKBONE)
