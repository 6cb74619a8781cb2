"""The definition of a study, read from a yaml file."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from se_detection.config.read_config import read_config
from se_detection.config.yaml_file import read_yaml
from se_detection.errors import UserError
from se_detection.pretrain.pretrain_config import config_base

KEYS = {"NAME", "SEEDS", "RECIPE", "TRAIN_IMAGES", "TUNING_IMAGES", "BASE_LR", "TUNING_ITERS", "VARIANTS"}


@dataclass(frozen=True)
class Variant:
    """A detector config, and the variant whose pre-trained backbone it starts from."""

    name: str
    config: Path
    backbone: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants x seeds; the first variant is the baseline.

    Args:
        name: prefix of the record files.
        seeds: backbones and detectors are trained once per seed.
        variants: by name.
        recipe: config file of the pre-training, for tools/pretrain.py.
        train_images: number of training images to use; 0 for all.
        tuning_images: number of other training images, for the choice of the learning rate.
        base_lr: the learning rates to try, with the first seed.
        tuning_iters: length of a trial.
        digest: hash of the file and of all configs that it names.
    """

    name: str
    seeds: tuple[int, ...]
    variants: dict[str, Variant]
    recipe: Path
    train_images: int
    tuning_images: int
    base_lr: tuple[float, ...]
    tuning_iters: int
    digest: str

    @property
    def baseline(self) -> Variant:
        """The first variant."""
        return next(iter(self.variants.values()))


def read_study(path: Path) -> Study:
    """Reads a study's yaml file. Paths in it are relative to it.

    Raises:
        UserError: the file can't be read, or a value is invalid.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; name a study, such as configs/Study/Study-cpu.yaml")
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != KEYS:
        raise UserError(f"{path}: a study must have exactly the keys {', '.join(sorted(KEYS))}")
    _check_name(path, "NAME", content["NAME"])
    variants = _read_variants(path, content["VARIANTS"])
    recipe = path.parent / str(content["RECIPE"])
    for key in ("TRAIN_IMAGES", "TUNING_IMAGES", "TUNING_ITERS"):
        if not _is_number(content[key], int) or content[key] < (key != "TRAIN_IMAGES"):
            raise UserError(f"{path}: {key}: {content[key]!r} is not a valid number")
    if not os.path.isfile(recipe):
        raise UserError(f"{path}: RECIPE: no such file: {recipe}")
    for key, kind in (("SEEDS", int), ("BASE_LR", float)):
        values = content[key]
        if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
            raise UserError(f"{path}: {key} must be a list of at least one value, without duplicates")
        for value in values:
            if not _is_number(value, kind):
                raise UserError(f"{path}: {key}: {value!r} is not a valid {'seed' if kind is int else 'learning rate'}")
    return Study(
        name=content["NAME"],
        seeds=tuple(content["SEEDS"]),
        variants=variants,
        recipe=recipe,
        train_images=content["TRAIN_IMAGES"],
        tuning_images=content["TUNING_IMAGES"],
        base_lr=tuple(content["BASE_LR"]),
        tuning_iters=content["TUNING_ITERS"],
        digest=_digest(content, [recipe, *(variant.config for variant in variants.values())]),
    )


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number from 0 to the largest 32-bit integer."""
    kinds = (int,) if kind is int else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value < 2**31


def _check_name(path: Path, key: str, name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(f"{path}: {key}: {name!r} is not a valid file name; use letters, digits, '_', '-' and '.'")


def _digest(content: dict[str, Any], configs: Sequence[Path]) -> str:
    hashed = [content, *map(_config_values, configs)]
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


def _config_values(config: Path) -> Any:
    """The values in a config and its bases, without defaults, which change with versions."""
    read_config(str(config), base=config_base())
    values = CfgNode.load_yaml_with_base(str(config))
    # The study sets this key itself.
    values.get("MODEL", {}).pop("WEIGHTS", None)
    return values


def _read_variants(path: Path, content: Any) -> dict[str, Variant]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: VARIANTS must name at least one detector")
    variants = {}
    for name, values in content.items():
        _check_name(path, "VARIANTS", name)
        if not isinstance(values, dict) or not {"CONFIG"} <= set(values) <= {"CONFIG", "BACKBONE"}:
            raise UserError(f"{path}: VARIANTS: {name} must have CONFIG, and may have BACKBONE")
        config = path.parent / str(values["CONFIG"])
        if not os.path.isfile(config):
            raise UserError(f"{path}: VARIANTS: {name}: no such file: {config}")
        variants[name] = Variant(name, config, str(values.get("BACKBONE", name)))
    for variant in variants.values():
        if variant.backbone not in variants:
            raise UserError(f"{path}: VARIANTS: {variant.name}: BACKBONE {variant.backbone} is not one of VARIANTS")
    return variants
