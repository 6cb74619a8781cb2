"""The saved configs of runs, and the keys in which two of them differ."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from detectron2.config import get_cfg

from ..config.defaults import flatten
from ..config.yaml_file import read_yaml
from ..errors import UserError
from .run_folder import CONFIG, INFERENCE

# The keys in which compared detectors may differ: the backbone's layers, its weights, and their input normalization.
BACKBONE_KEYS = (
    *("MODEL.BACKBONE.NAME", "MODEL.SE.*", "MODEL.RESNETS.*", "MODEL.TIMM.*", "MODEL.WEIGHTS"),
    *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
)
# How the backbone is trained, and which features the detector uses, belong to the recipe.
NOT_BACKBONE_KEYS = (
    *("MODEL.RESNETS.NORM", "MODEL.RESNETS.OUT_FEATURES", "MODEL.RESNETS.DROP_BLOCK"),
    *("MODEL.TIMM.NORM", "MODEL.TIMM.OUT_FEATURES", "MODEL.TIMM.FREEZE_AT"),
    *("MODEL.TIMM.DROP_PATH", "MODEL.TIMM.DROP_BLOCK"),
)
# Keys that change the result only by chance; data sets are compared by content elsewhere.
INDIFFERENT = (
    *("OUTPUT_DIR", "SEED", "VERSION", "VIS_PERIOD", "CUDNN_BENCHMARK", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("DATASETS.TRAIN", "DATASETS.TEST", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS", "SOLVER.CHECKPOINT_PERIOD"),
    *("SOLVER.CHECKPOINTS_TO_KEEP", "SOLVER.BEST_METRIC", "SOLVER.LOGGERS"),
)
# These differ with SE: it is in res5, which a C4 detector has in its heads, or after RoIAlign (MODEL.SE.ROI).
SAME_HEADS = {f"SE{name}": name for name in ("Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads")}
Recipe = dict[str, Any]


def read_recipe(folder: Path) -> Recipe | None:
    """The config of a run by full key, with the TEST keys of its latest evaluation; None if the run has no config.

    Raises:
        UserError: a file is not a saved config.
    """
    training, evaluation = folder / CONFIG, folder / INFERENCE / CONFIG
    if not training.is_file():
        return _read(evaluation) if evaluation.is_file() else None
    recipe = _read(training)
    if evaluation.is_file() and evaluation.stat().st_mtime > training.stat().st_mtime:
        recipe |= {key: value for key, value in _read(evaluation).items() if "TEST" in key}
    return recipe


def _read(path: Path) -> Recipe:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError("run.bad_config", f"{path} is not a saved config; evaluate the run again")
    # Keys that an older version did not have get their default.
    recipe = flatten(get_cfg()) | flatten(content)
    heads = recipe["MODEL.ROI_HEADS.NAME"]
    return recipe | {"MODEL.ROI_HEADS.NAME": SAME_HEADS.get(heads, heads)}


def differing(first: Recipe, second: Recipe) -> dict[str, list[Any]]:
    """The two values of each key that differs, except the keys that don't matter."""
    keys = sorted(first.keys() | second.keys())
    values = {key: [first.get(key), second.get(key)] for key in keys if key not in INDIFFERENT}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def is_of_backbone(key: str) -> bool:
    """Whether the two detectors of a comparison may differ in this key."""
    return key not in NOT_BACKBONE_KEYS and any(fnmatch(key, pattern) for pattern in BACKBONE_KEYS)
