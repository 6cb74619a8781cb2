"""The project's configs by name, as in detectron2's `model_zoo`."""

from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from .errors import UserError
from .padding_in_heads import ignore_padding_in_heads


def _folder() -> Path:
    # Inside the package when installed from a wheel, beside it in a checkout.
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def names() -> list[str]:
    """The names of detectors' configs, such as `COCO-Detection/faster_rcnn_SE_R_50_FPN_1x`, without their bases."""
    files = [path.relative_to(_folder()) for path in _folder().glob("*/*.yaml") if not path.name[0].isupper()]
    return sorted(str(path.with_suffix("")) for path in files)


def get_config_file(name: str) -> str:
    """The path of a config's yaml, for detectron2's `--config-file`; `.yaml` at the name's end is optional.

    Raises:
        UserError: there is no config of that name.
    """
    name = name.removesuffix(".yaml")
    if name not in names():
        raise UserError(f"no config is named {name!r}; choose from {', '.join(names())}")
    return str(_folder() / f"{name}.yaml")


def get_recipe_file(name: str) -> str:
    """The path of one of tools/pretrain.py's recipes, such as `paper`.

    Raises:
        UserError: there is none of that name.
    """
    recipes = {path.stem.removeprefix("Recipe-"): path for path in sorted(_folder().glob("Pretrain/Recipe-*.yaml"))}
    if name not in recipes:
        raise UserError(f"no recipe is named {name!r}; choose from {', '.join(recipes)}, or give a .yaml file")
    return str(recipes[name])


def get_config(name: str) -> CfgNode:
    """A config by name, not frozen.

    Raises:
        UserError: there is no config of that name.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    return cfg


def get(name: str, trained: bool = False) -> nn.Module:
    """A detector by name, with random weights, on the config's device, or the CPU where there is no GPU.

    Raises:
        UserError: there is no config of that name, or trained weights were asked for and none are published.
    """
    if trained:
        raise UserError(f"no trained weights are published for {name!r}; train it with tools/train_net.py")
    cfg = get_config(name)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    ignore_padding_in_heads(model)
    return model
