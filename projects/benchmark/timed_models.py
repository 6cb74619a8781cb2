"""The arms: which network, and how it is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from se_detection.modeling.fuse.fuse import fuse_for_inference

from .case import DTYPES, Case
from .networks import PLAIN, SE, TIMM, TIMM_LEGACY, build_network


@dataclass(frozen=True)
class TimedModel:
    """A network and how it is run.

    Args:
        backbone: of :func:`build_network`.
        fused: :func:`se_detection.export.fuse_for_inference` before it is run; for inference alone.
        compiled: `torch.compile`, of backbone and FPN alone.
        about: what a person is told.
    """

    backbone: str
    fused: bool = False
    compiled: bool = False
    about: str = ""

    def runs_in(self, mode: str) -> bool:
        """Whether there is such an arm; compiled SE is fused at inference, and just compiled in training."""
        return mode == "inference" or not self.fused or self.compiled

    def build(self, case: Case, compile_mode: str) -> nn.Module:
        """The network, ready to run.

        Args:
            compile_mode: `torch.compile`'s, such as `default` or `reduce-overhead`.
        """
        network: Any = build_network(self.backbone, case)
        if self.fused and case.mode == "inference":
            dtype = None if case.dtype == "float32" else DTYPES[case.dtype]
            return fuse_for_inference(network, dtype=dtype, compile=compile_mode if self.compiled else None)
        if self.compiled:
            # As fuse_for_inference does it: a detector's images are of many sizes.
            getattr(network, "backbone", network).compile(mode=compile_mode, dynamic=True)
        return network

    def autocast(self, case: Case) -> bool:
        """Whether half precision is autocast's: a fused backbone has its own, a detector's heads have not."""
        return not self.fused or case.mode == "train" or case.part == "detector"


STOCK = "stock"
# No network, but the least time for ours.
BOUND = "bound"
ARMS: Mapping[str, TimedModel] = {
    STOCK: TimedModel(PLAIN, about="detectron2's plain ResNet, as it is: what the others are compared with"),
    "stock-fused": TimedModel(PLAIN, fused=True, about="the same after fuse_for_inference"),
    "stock-compiled": TimedModel(
        PLAIN, fused=True, compiled=True, about="the same after fuse_for_inference and torch.compile"
    ),
    "timm-legacy": TimedModel(TIMM_LEGACY, about="timm's legacy_seresnet as the backbone"),
    "timm": TimedModel(TIMM, about="timm's seresnet as the backbone"),
    "eager": TimedModel(SE, about="our SE-ResNet as it is trained"),
    "fused": TimedModel(SE, fused=True, about="ours after fuse_for_inference"),
    "compiled": TimedModel(SE, fused=True, compiled=True, about="ours after fuse_for_inference and torch.compile"),
}
ARM_NAMES = (*ARMS, BOUND)
# What SE costs: the plain network treated alike, but for FrozenBN in training, which only ours folds.
PLAIN_OF: Mapping[str, str] = {"eager": STOCK, "fused": "stock-fused", "compiled": "stock-compiled"}


def arms_of(mode: str, names: Sequence[str]) -> list[str]:
    """Those of some arms that there are in a mode, and `stock`, which is always there."""
    return [
        name for name in ARM_NAMES if name == STOCK or (name in names and (name == BOUND or ARMS[name].runs_in(mode)))
    ]
