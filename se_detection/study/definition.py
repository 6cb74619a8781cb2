"""What a study consists of, as a yaml file says it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..engine.config import read_config
from ..errors import UserError
from ..pretrain.config import config_base

KEYS = {"NAME", "SEEDS", "RECIPE", "TRAIN_PICTURES", "TUNING_PICTURES", "BASE_LR", "TUNING_ITERS", "ARMS"}


@dataclass(frozen=True)
class Arm:
    """A detector: its config, and the arm whose pre-trained trunk it begins with (another's is loaded in part)."""

    name: str
    config: Path
    trunk: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms x seeds; the first arm is the baseline.

    Args:
        name: of the files that are kept.
        seeds: each has its own trunks and its own fine-tuning.
        arms: by name.
        recipe: of the pre-training, a file for tools/pretrain.py.
        train_pictures: how many of the training pictures are trained on; 0 for all.
        tuning_pictures: how many others the learning rate is chosen on.
        base_lr: the learning rates that are tried, with the first seed.
        tuning_iters: the length of a trial.
        digest: of the file and all configs that it names.
    """

    name: str
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    recipe: Path
    train_pictures: int
    tuning_pictures: int
    base_lr: tuple[float, ...]
    tuning_iters: int
    digest: str

    @property
    def baseline(self) -> Arm:
        """The first arm."""
        return next(iter(self.arms.values()))


def read_study(path: Path) -> Study:
    """Reads a study's yaml file; paths in it are relative to it.

    Raises:
        UserError: it can't be read, or says something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a study, such as configs/Study/Study-cpu.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) != KEYS:
        raise UserError(f"{path}: a study has the keys {', '.join(sorted(KEYS))}, and no others")
    arms = _arms(path, content["ARMS"])
    recipe = path.parent / str(content["RECIPE"])
    for key in ("TRAIN_PICTURES", "TUNING_PICTURES", "TUNING_ITERS"):
        if not isinstance(content[key], int) or content[key] < (key != "TRAIN_PICTURES"):
            raise UserError(f"{path}: {key}: {content[key]!r} is no number of that")
    if not recipe.is_file():
        raise UserError(f"{path}: RECIPE: there is no file {recipe}")
    for key in ("SEEDS", "BASE_LR"):
        values = content[key]
        if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
            raise UserError(f"{path}: {key} must be a list with at least one value, and each value once")
    return Study(
        name=str(content["NAME"]),
        seeds=tuple(content["SEEDS"]),
        arms=arms,
        recipe=recipe,
        train_pictures=content["TRAIN_PICTURES"],
        tuning_pictures=content["TUNING_PICTURES"],
        base_lr=tuple(content["BASE_LR"]),
        tuning_iters=content["TUNING_ITERS"],
        digest=_digest([content, *map(_values, [recipe, *(arm.config for arm in arms.values())])]),
    )


def _values(config: Path) -> Any:
    """What a config and its bases say, without defaults, which change with versions."""
    read_config(str(config), base=config_base())
    return CfgNode.load_yaml_with_base(str(config))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _arms(path: Path, content: Any) -> dict[str, Arm]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: ARMS must name at least one arm")
    arms = {}
    for name, values in content.items():
        if not isinstance(values, dict) or not {"CONFIG"} <= set(values) <= {"CONFIG", "TRUNK"}:
            raise UserError(f"{path}: arm {name} must have CONFIG, and may have TRUNK")
        config = path.parent / values["CONFIG"]
        if not config.is_file():
            raise UserError(f"{path}: arm {name}: there is no file {config}")
        arms[name] = Arm(name, config, str(values.get("TRUNK", name)))
    for arm in arms.values():
        if arm.trunk not in arms:
            raise UserError(f"{path}: arm {arm.name}: TRUNK {arm.trunk} is none of its arms")
    return arms
