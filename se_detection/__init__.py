"""Squeeze-and-excitation backbones for detectron2 (Hu et al., arXiv 1709.01507).

Importing this package registers the backbones, the C4 head and the toy data set with detectron2, and adds `MODEL.SE` to
the config that `detectron2.config.get_cfg()` returns.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    from .install_detectron2 import MISSING_DETECTRON2

    raise ModuleNotFoundError(MISSING_DETECTRON2, name="detectron2") from None
else:
    import sys

    import torch

    from .versions import check_versions

    # Before the modules that an older one stumbles over.
    check_versions(sys.version_info[:2], torch.__version__)

from detectron2.config import defaults

from .backbones import create_backbone
from .checkpoint.timm_handler import register_timm_handler
from .config.defaults import add_se_config
from .config.se_config import SEConfig
from .data.toy import register_toy
from .errors import UserError
from .modeling import roi_heads

__all__ = ["SEConfig", "UserError", "add_se_config", "create_backbone", "model_zoo", "roi_heads"]

add_se_config(defaults._C)
register_timm_handler()
register_toy()
