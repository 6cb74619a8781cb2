"""The project's configs by name, in both of detectron2's config systems, as in detectron2's `model_zoo`."""

from difflib import get_close_matches
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from .errors import UserError
from .modeling.padding import ignore_padding_in_heads

YAML, LAZY = ".yaml", ".py"
# Of lazy configs, what others are made of.
PARTS = "common"


def _folder() -> Path:
    # Inside the package when installed from a wheel, beside it in a checkout.
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def names() -> list[str]:
    """The names of detectors' configs, without those that are only bases of others.

    As in detectron2's zoo a name is a path in `configs/`, and one that ends with `.py` is a lazy config's:
    `lazy/COCO-Detection/faster_rcnn_SE_R_50_FPN_1x.py`. A yaml's name is without its ending:
    `COCO-Detection/faster_rcnn_SE_R_50_FPN_1x`.
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
        raise UserError(f"no config is named {name!r}; did you mean {close[0]!r}? model_zoo.names() lists all")
    return str(_folder() / (bare if bare.endswith(LAZY) else bare + YAML))


def find_config_file(name_or_path: str) -> str:
    """The path of a config: an existing file as it is, else a config by name (:func:`get_config_file`).

    Raises:
        UserError: there is neither a file nor a config of that name.
    """
    return name_or_path if Path(name_or_path).is_file() else get_config_file(name_or_path)


def get_recipe_file(name: str) -> str:
    """The path of one of tools/pretrain.py's recipes, such as `paper`.

    Raises:
        UserError: there is none of that name.
    """
    recipes = {path.stem.removeprefix("Recipe-"): path for path in sorted(_folder().glob("Pretrain/Recipe-*.yaml"))}
    if name not in recipes:
        raise UserError(f"no recipe is named {name!r}; choose from {', '.join(recipes)}, or give a .yaml file")
    return str(recipes[name])


def get_config(name: str) -> CfgNode | DictConfig:
    """A config by name: a yaml's is a `CfgNode` that is not frozen, a lazy one's what `LazyConfig.load` gives.

    Raises:
        UserError: there is no config of that name.
    """
    file = get_config_file(name)
    if name.endswith(LAZY):
        return LazyConfig.load(file)
    cfg = get_cfg()
    cfg.merge_from_file(file, allow_unsafe=False)
    return cfg


def get(name: str, trained: bool = False) -> nn.Module:
    """A detector by name, with random weights, on the config's device, or the CPU where there is no GPU.

    Raises:
        UserError: there is no config of that name, or trained weights were asked for and none are published.
    """
    cfg = get_config(name)
    if trained:
        raise UserError(f"no trained weights are published for {name!r}; train it with tools/train_net.py")
    has_gpu = torch.cuda.is_available()
    if isinstance(cfg, DictConfig):
        model = instantiate(cfg.model).to("cuda" if has_gpu else "cpu")
    else:
        if not has_gpu:
            cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg)
    ignore_padding_in_heads(model)
    return model
