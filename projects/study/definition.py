"""What a study consists of, as a yaml file says it."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from se_detection.config.read_config import read_config
from se_detection.config.values import LARGEST_INTEGER
from se_detection.config.yaml_file import read_yaml
from se_detection.errors import UserError
from se_detection.pretrain.pretrain_config import config_base

KEYS = {"NAME", "SEEDS", "RECIPE", "TRAIN_IMAGES", "TUNING_IMAGES", "BASE_LR", "TUNING_ITERS", "ARMS"}


@dataclass(frozen=True)
class Variant:
    """A detector: its config, and the arm whose pre-trained backbone it begins with (another's is loaded in part)."""

    name: str
    config: Path
    backbone: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms x seeds; the first arm is the baseline.

    Args:
        name: of the files that are kept.
        seeds: each has its own backbones and its own fine-tuning.
        arms: by name.
        recipe: of the pre-training, a file for tools/pretrain.py.
        train_images: how many of the training images are trained on; 0 for all.
        tuning_images: how many others the learning rate is chosen on.
        base_lr: the learning rates that are tried, with the first seed.
        tuning_iters: the length of a trial.
        digest: of the file and all configs that it names.
    """

    name: str
    seeds: tuple[int, ...]
    arms: dict[str, Variant]
    recipe: Path
    train_images: int
    tuning_images: int
    base_lr: tuple[float, ...]
    tuning_iters: int
    digest: str

    @property
    def baseline(self) -> Variant:
        """The first arm."""
        return next(iter(self.arms.values()))


def read_study(path: Path) -> Study:
    """Reads a study's yaml file; paths in it are relative to it.

    Raises:
        UserError: it can't be read, or says something else.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file; name a study, such as configs/Study/Study-cpu.yaml")
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != KEYS:
        raise UserError(f"{path}: a study has the keys {', '.join(sorted(KEYS))}, and no others")
    _check_name(path, "NAME", content["NAME"])
    arms = _arms(path, content["ARMS"])
    recipe = path.parent / str(content["RECIPE"])
    for key in ("TRAIN_IMAGES", "TUNING_IMAGES", "TUNING_ITERS"):
        if not _is_number(content[key], int) or content[key] < (key != "TRAIN_IMAGES"):
            raise UserError(f"{path}: {key}: {content[key]!r} is no number of that")
    if not os.path.isfile(recipe):
        raise UserError(f"{path}: RECIPE: there is no file {recipe}")
    for key, kind in (("SEEDS", int), ("BASE_LR", float)):
        values = content[key]
        if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
            raise UserError(f"{path}: {key} must be a list with at least one value, and each value once")
        for value in values:
            if not _is_number(value, kind):
                raise UserError(f"{path}: {key}: {value!r} is no {'seed' if kind is int else 'learning rate'}")
    return Study(
        name=content["NAME"],
        seeds=tuple(content["SEEDS"]),
        arms=arms,
        recipe=recipe,
        train_images=content["TRAIN_IMAGES"],
        tuning_images=content["TUNING_IMAGES"],
        base_lr=tuple(content["BASE_LR"]),
        tuning_iters=content["TUNING_ITERS"],
        digest=_digest([content, *map(_values, [recipe, *(arm.config for arm in arms.values())])]),
    )


def _is_number(value: Any, kind: type) -> bool:
    """Whether it is a number that is neither negative nor beyond what can be computed with."""
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value <= LARGEST_INTEGER


def _check_name(path: Path, what: str, name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(f"{path}: {what}: {name!r} is no name for files; take letters, digits, '_', '-' and '.'")


def _values(config: Path) -> Any:
    """What a config and its bases say, without defaults, which change with versions."""
    read_config(str(config), base=config_base())
    return CfgNode.load_yaml_with_base(str(config))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _arms(path: Path, content: Any) -> dict[str, Variant]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: ARMS must name at least one arm")
    arms = {}
    for name, values in content.items():
        _check_name(path, "ARMS", name)
        if not isinstance(values, dict) or not {"CONFIG"} <= set(values) <= {"CONFIG", "BACKBONE"}:
            raise UserError(f"{path}: arm {name} must have CONFIG, and may have BACKBONE")
        config = path.parent / str(values["CONFIG"])
        if not os.path.isfile(config):
            raise UserError(f"{path}: arm {name}: there is no file {config}")
        arms[name] = Variant(name, config, str(values.get("BACKBONE", name)))
    for arm in arms.values():
        if arm.backbone not in arms:
            raise UserError(f"{path}: arm {arm.name}: BACKBONE {arm.backbone} is none of its arms")
    return arms
