"""The project's configs and detectors by name, with the functions of detectron2's `model_zoo`."""

from difflib import get_close_matches
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from .checkpoint.assumptions import WeightsAssumptions
from .checkpoint.checkpointer import StrictCheckpointer
from .errors import UserError
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
    folder = _folder()
    files = [*folder.glob(f"*/*{YAML}"), *folder.glob(f"lazy/**/*{LAZY}")]
    files = [file.relative_to(folder) for file in files if file.name[0].islower() and PARTS not in file.parts]
    return sorted(str(file).removesuffix(YAML) for file in files)


def get_config_file(name: str) -> str:
    """The path of a config by name; `.yaml` at the end of the name is optional.

    Raises:
        UserError: there is no config of that name.
    """
    known = names()
    if (bare := name.removesuffix(YAML)) not in known:
        close = get_close_matches(bare, known, n=1, cutoff=0)
        raise UserError(
            "config.not_found", f"no config is named {name!r}; did you mean {close[0]!r}? model_zoo.names() lists all"
        )
    return str(_folder() / (bare if bare.endswith(LAZY) else bare + YAML))


def find_config_file(name_or_path: str) -> str:
    """The path of a config: of an existing file, or else of a config by name (:func:`get_config_file`).

    Raises:
        UserError: there is neither a file nor a config of that name.
    """
    return name_or_path if Path(name_or_path).is_file() else get_config_file(name_or_path)


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
            "weights.not_published", f"no trained weights are published for {name!r}; train it with se-det train"
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
        assumptions = WeightsAssumptions.from_cfg(cfg)
    ignore_padding_in_heads(model)
    StrictCheckpointer(model, assumptions=assumptions).load(weights)
    return model
