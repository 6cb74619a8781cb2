"""The definition of a study, read from a yaml file."""

import hashlib
import json
import re
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
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != KEYS:
        raise UserError("study.keys", f"{path}: a study must have exactly the keys {', '.join(sorted(KEYS))}")
    variants = _read_variants(path, content["VARIANTS"])
    for key in ("SEEDS", "TRAIN_IMAGES", "TUNING_IMAGES", "TUNING_ITERS", "BASE_LR"):
        several, kinds = key in ("SEEDS", "BASE_LR"), (int, float) if key == "BASE_LR" else (int,)
        values = content[key] if several else [content[key]]
        if not isinstance(values, list) or not values or any(type(value) not in kinds or value < 0 for value in values):
            what = "a list of numbers" if several else "a number"
            raise UserError("study.bad_value", f"{path}: {key}: {content[key]!r} is not {what}; use at least 0")
        if len(set(values)) < len(values):
            raise UserError("study.bad_value", f"{path}: {key}: {values} has a value twice; remove one")
    recipe = path.parent / str(content["RECIPE"])
    return Study(
        name=_file_name(path, "NAME", content["NAME"]),
        seeds=tuple(content["SEEDS"]),
        variants=variants,
        recipe=recipe,
        train_images=content["TRAIN_IMAGES"],
        tuning_images=content["TUNING_IMAGES"],
        base_lr=tuple(content["BASE_LR"]),
        tuning_iters=content["TUNING_ITERS"],
        digest=_digest([content, *map(_config_values, [recipe, *(variant.config for variant in variants.values())])]),
    )


def _read_variants(path: Path, content: Any) -> dict[str, Variant]:
    if not isinstance(content, dict) or not content:
        raise UserError("study.bad_variant", f"{path}: VARIANTS must name at least one detector")
    variants = {}
    for name, values in content.items():
        _file_name(path, "VARIANTS", name)
        if not isinstance(values, dict) or not {"CONFIG"} <= set(values) <= {"CONFIG", "BACKBONE"}:
            raise UserError("study.bad_variant", f"{path}: VARIANTS: {name} must have CONFIG, and may have BACKBONE")
        variants[name] = Variant(name, path.parent / str(values["CONFIG"]), str(values.get("BACKBONE", name)))
        if variants[name].backbone not in content:
            raise UserError(
                "study.bad_variant",
                f"{path}: VARIANTS: {name}: BACKBONE {variants[name].backbone} is not one of VARIANTS",
            )
    return variants


def _file_name(path: Path, key: str, name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            "study.bad_name",
            f"{path}: {key}: {name!r} is not a valid file name; use letters, digits, '_', '-' and '.'",
        )
    return name


def _config_values(config: Path) -> Any:
    """The values in a config and its bases, without defaults, which change with versions."""
    read_config(str(config), base=config_base())
    values = CfgNode.load_yaml_with_base(str(config))
    # The study sets this key itself.
    values.get("MODEL", {}).pop("WEIGHTS", None)
    return values


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
