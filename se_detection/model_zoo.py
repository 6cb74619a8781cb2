"""The project's configs and detectors by name, with the functions of detectron2's `model_zoo`."""

from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from .checkpoint.checkpointer import StrictCheckpointer
from .checkpoint.timm_weights import assumptions_of
from .errors import UserError, suggestion
from .modeling.padding import ignore_padding_in_heads

YAML, LAZY = ".yaml", ".py"
# The folder of parts that lazy configs share.
PARTS = "common"


def _folder() -> Path:
    # In the package if it was installed from a wheel, next to it in a checkout.
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def names() -> list[str]:
    """The names of the configs of detectors, without configs that are only bases of others.

    As in detectron2's zoo, a name is a path in `configs/`. Yaml configs have no suffix:
    `COCO-Detection/faster_rcnn_SE_R_50_FPN_1x`. Lazy configs end with `.py`:
    `lazy/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.py`.
    """
    return sorted(_configs(_folder()))


def _configs(folder: Path) -> dict[str, Path]:
    """The configs of detectors in a folder, by name."""
    files = {file.relative_to(folder): file for file in (*folder.glob(f"*/*{YAML}"), *folder.glob(f"**/*{LAZY}"))}
    return {
        part.as_posix().removesuffix(YAML): file
        for part, file in files.items()
        if part.name[0].islower() and PARTS not in part.parts
    }


def get_config_file(name: str) -> str:
    """The path of a config by name: this project's, or else detectron2's.

    The folder in the name is optional if no other config has the rest of the name, `.yaml` always is.

    Raises:
        UserError: no config has this name, or several have it without their folders.
    """
    bare = name.removesuffix(YAML).removeprefix("configs/")
    # Not by detectron2's function, whose module warns that its pkg_resources is deprecated.
    theirs = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    zoos = [_configs(_folder()), _configs(theirs)]
    for zoo in zoos:
        if bare in zoo:
            return str(zoo[bare])
    for zoo in zoos:
        same = sorted(known for known in zoo if known.endswith(f"/{bare}"))
        if len(same) > 1:
            raise UserError(
                "config.ambiguous_name", f"{len(same)} configs are named {name!r}; give one of {', '.join(same)}"
            )
        if same:
            return str(zoo[same[0]])
    raise UserError(
        "config.not_found",
        f"no config is named {name!r}; {suggestion(bare, names())}se-det zoo lists all",
    )


def find_config_file(name_or_path: str) -> str:
    """The path of the config that `--config-file` names: of an existing file, or by name (:func:`get_config_file`).

    Raises:
        UserError: there is neither a file nor a config of that name, or several.
    """
    if Path(name_or_path).is_file():
        return name_or_path
    if not name_or_path:
        raise UserError(
            "config.not_found", "--config-file is missing; give a file, or the name of a config (se-det zoo lists them)"
        )
    try:
        return get_config_file(name_or_path)
    except UserError as error:
        message = f"--config-file {name_or_path}: there is no such file, and {error.message}"
        raise UserError(error.code, message) from error


def get_recipe_file(name: str) -> str:
    """The path of a recipe for `se-det pretrain` by name, such as `paper`.

    Raises:
        UserError: there is no recipe of that name.
    """
    recipes = {path.stem.removeprefix("Recipe-"): path for path in sorted(_folder().glob("Pretrain/Recipe-*.yaml"))}
    if name not in recipes:
        raise UserError(
            "config.not_found", f"no recipe is named {name!r}; choose from {', '.join(recipes)}, or give a .yaml file"
        )
    return str(recipes[name])


def get_config(name: str, trained: bool = False) -> CfgNode | DictConfig:
    """A config by name: a `CfgNode` that is not frozen, or for a lazy config the result of `LazyConfig.load`.

    Args:
        trained: not supported, because no trained detectors are published.

    Raises:
        UserError: there is no config of that name, or `trained` is set.
    """
    file = get_config_file(name)
    if trained:
        raise UserError(
            "weights.not_published",
            f"{name!r}: this project publishes no trained weights; train it with se-det train",
        )
    if file.endswith(LAZY):
        return LazyConfig.load(file)
    cfg = get_cfg()
    cfg.merge_from_file(file, allow_unsafe=False)
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A detector by name in training mode, with the weights of `MODEL.WEIGHTS` (lazy: `train.init_checkpoint`).

    For most configs these are weights of the backbone, which timm or detectron2 downloads; the heads are random. The
    weights must fill the whole backbone. For a detector with random weights, use
    `detectron2.modeling.build_model(get_config(name))`.

    Args:
        trained: not supported, because no trained detectors are published.
        device: by default that of the config, or the CPU if there is no GPU.

    Raises:
        UserError: there is no config of that name, `trained` is set, or the weights are not available or don't fit.
    """
    cfg = get_config(name, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    assumptions = None
    if isinstance(cfg, DictConfig):
        model = instantiate(cfg.model).to(device or cfg.train.device)
        weights = cfg.train.init_checkpoint
    else:
        if device is not None:
            cfg.MODEL.DEVICE = device
        model = build_model(cfg)
        weights = cfg.MODEL.WEIGHTS
        assumptions = assumptions_of(cfg)
    ignore_padding_in_heads(model)
    StrictCheckpointer(model, assumptions=assumptions).load(weights)
    return model
