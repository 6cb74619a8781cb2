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

KEYS = {"NAME", "BASE_LR", "VARIANTS", "DATA"}
DATA_KEYS = {"TRAIN", "VAL", "SEEDS", "TUNING_IMAGES", "OPTIONS"}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of a study.

    Args:
        name: its name in the tables and in the record files.
        train: annotations and folder of images, relative to the folder given with `--data`.
        val: as `train`; only the final detectors are evaluated on it.
        seeds: each variant is trained once per seed.
        tuning_images: number of training images that are kept for the choice of the learning rate.
        options: config overrides for all variants, such as the number of steps and the image size.
        digest: hash of this data set's part of the definition, and of all configs.
    """

    name: str
    train: tuple[str, str]
    val: tuple[str, str]
    seeds: tuple[int, ...]
    tuning_images: int
    options: tuple[str, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants x data sets x seeds; the first variant is the baseline.

    Args:
        name: prefix of the record files.
        variants: config files by name; each starts from its config's `MODEL.WEIGHTS`.
        data: data sets by name.
        base_lr: the learning rates to try for each variant and data set, with the first seed.
    """

    name: str
    variants: dict[str, Path]
    data: dict[str, DataSet]
    base_lr: tuple[float, ...]

    @property
    def baseline(self) -> str:
        """The name of the first variant."""
        return next(iter(self.variants))


def read_study(path: Path) -> Study:
    """Reads a study's yaml file. Config files in it are relative to it.

    Raises:
        UserError: the file can't be read, or a value is invalid.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != KEYS:
        raise UserError("study.keys", f"{path}: a study must have exactly the keys {', '.join(sorted(KEYS))}")
    rates = _numbers(path, "BASE_LR", content["BASE_LR"], (int, float))
    for key in ("VARIANTS", "DATA"):
        if not isinstance(content[key], dict) or not content[key]:
            raise UserError("study.bad_value", f"{path}: {key} must have at least one name with its values; add one")
    files = content["VARIANTS"].items()
    variants = {_file_name(path, "VARIANTS", name): path.parent / str(file) for name, file in files}
    shared = [content["BASE_LR"], *map(_config_values, variants.values())]
    return Study(
        name=_file_name(path, "NAME", content["NAME"]),
        variants=variants,
        data={name: _read_data_set(path, name, values, shared) for name, values in content["DATA"].items()},
        base_lr=tuple(map(float, rates)),
    )


def _read_data_set(path: Path, name: object, values: Any, shared: list[Any]) -> DataSet:
    file_name = _file_name(path, "DATA", name)
    if not isinstance(values, dict) or set(values) != DATA_KEYS:
        raise UserError("study.keys", f"{path}: DATA: {name} must have exactly the keys {', '.join(sorted(DATA_KEYS))}")
    for key in ("TRAIN", "VAL"):
        if not isinstance(values[key], list) or len(values[key]) != 2:
            raise UserError("study.bad_value", f"{path}: {name}: {key} must be [annotations, folder of images]")
    _numbers(path, f"{name}: TUNING_IMAGES", [values["TUNING_IMAGES"]], (int,))
    return DataSet(
        name=file_name,
        train=(str(values["TRAIN"][0]), str(values["TRAIN"][1])),
        val=(str(values["VAL"][0]), str(values["VAL"][1])),
        seeds=tuple(map(int, _numbers(path, f"{name}: SEEDS", values["SEEDS"], (int,)))),
        tuning_images=values["TUNING_IMAGES"],
        options=tuple(map(str, values["OPTIONS"])),
        # More seeds don't make the finished runs invalid.
        digest=_digest([shared, {key: value for key, value in values.items() if key != "SEEDS"}]),
    )


def _numbers(path: Path, key: str, values: Any, kinds: tuple[type, ...]) -> list[float]:
    if not isinstance(values, list) or not values or any(type(value) not in kinds or value < 0 for value in values):
        raise UserError("study.bad_value", f"{path}: {key}: {values!r} is not a list of numbers; use at least 0")
    if len(set(values)) < len(values):
        raise UserError("study.bad_value", f"{path}: {key}: {values} has a value twice; remove one")
    return values


def _file_name(path: Path, key: str, name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(
            "study.bad_name",
            f"{path}: {key}: {name!r} is not a valid file name; use letters, digits, '_', '-' and '.'",
        )
    return name


def _config_values(config: Path) -> Any:
    """The values in a config and its bases, without defaults, which change with versions."""
    read_config(str(config))
    return CfgNode.load_yaml_with_base(str(config))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
