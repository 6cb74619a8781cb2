"""Squeeze-and-excitation backbones for detectron2 (Hu et al., arXiv 1709.01507).

Importing this package registers the backbones, the C4 head and the toy data set with detectron2, and adds the keys of
:func:`add_se_config` to the config that `detectron2.config.get_cfg()` returns.
"""

try:
    import detectron2
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    from .install_detectron2 import MISSING_DETECTRON2

    raise ModuleNotFoundError(MISSING_DETECTRON2, name="detectron2") from None
else:
    import sys
    import warnings

    import torch

    from .versions import check_versions

    # Before the other modules, which fail on an older Python or torch.
    check_versions(sys.version_info[:2], torch.__version__)
    # detectron2 and fvcore script some functions when they are imported, and newer versions of torch warn of it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is (deprecated|not supported)")
        import detectron2.modeling  # noqa: F401

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from detectron2.config import defaults
from detectron2.utils.file_io import PathManager

from . import model_zoo
from .backbones import create_backbone, create_res5
from .checkpoint.convert import convert_state_dict
from .checkpoint.timm_handler import TimmHandler, WheelHandler
from .config.defaults import add_se_config
from .config.se_config import SEConfig
from .data.toy import register_toy
from .errors import UserError
from .modeling.fuse import fuse_for_inference
from .modeling.insert_se import SESite, add_se_to_fpn, add_se_to_pooler, insert_se, register_se_sites
from .modeling.squeeze_excitation import SqueezeExcitation
from .modeling.timm_backbone import create_timm_backbone

if TYPE_CHECKING:
    from .comparison.compare import compare
    from .inference.predictor import SEPredictor

__all__ = [
    "SEConfig",
    "SEPredictor",
    "SESite",
    "SqueezeExcitation",
    "UserError",
    "add_se_config",
    "add_se_to_fpn",
    "add_se_to_pooler",
    "compare",
    "convert_state_dict",
    "create_backbone",
    "create_res5",
    "create_timm_backbone",
    "fuse_for_inference",
    "insert_se",
    "model_zoo",
    "register_se_sites",
]

# Imported on first use, because they need more than detectron2's modeling: pycocotools, Matplotlib, OpenCV.
LAZY = {"compare": "se_detection.comparison.compare", "SEPredictor": "se_detection.inference.predictor"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version(__name__)
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


add_se_config(defaults._C)
PathManager.register_handler(TimmHandler(), allow_override=True)
PathManager.register_handler(WheelHandler(), allow_override=True)
register_toy()
