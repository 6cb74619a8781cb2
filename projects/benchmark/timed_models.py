"""The models that are timed: which network, and how it is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from se_detection.modeling.fuse.fuse_detector import fuse_for_inference

from .deployment import ExportedModel
from .networks import DTYPES, PLAIN, SE, TIMM, TIMM_LEGACY, Case, build_network


@dataclass(frozen=True)
class TimedModel:
    """A network and how it is run.

    Args:
        backbone: see :func:`build_network`.
        fused: apply :func:`se_detection.fuse_for_inference`; for inference only.
        compiled: apply `torch.compile` to backbone and FPN.
    """

    backbone: str
    fused: bool = False
    compiled: bool = False

    def build(self, case: Case, compile_mode: str) -> nn.Module:
        """Builds the network; `compile_mode` is a mode of `torch.compile`, such as `default` or `reduce-overhead`."""
        network: Any = build_network(self.backbone, case)
        if self.fused and case.mode == "inference":
            dtype = None if case.dtype == "float32" else DTYPES[case.dtype]
            return fuse_for_inference(network, dtype=dtype, compile=compile_mode if self.compiled else None)
        if self.compiled:
            # Dynamic shapes, as in fuse_for_inference: a detector's images have many sizes.
            getattr(network, "backbone", network).compile(mode=compile_mode, dynamic=True)
        return network

    def autocast(self, case: Case) -> bool:
        """Whether half precision needs autocast. A fused backbone is in half precision; a detector's heads are not."""
        return not self.fused or case.mode == "train" or case.part == "detector"


STOCK = "stock"
# Not a model: a lower bound of our time.
BOUND = "bound"
MODELS: Mapping[str, TimedModel] = {
    STOCK: TimedModel(PLAIN),
    "stock-fused": TimedModel(PLAIN, fused=True),
    "stock-compiled": TimedModel(PLAIN, fused=True, compiled=True),
    "timm-legacy": TimedModel(TIMM_LEGACY),
    "timm": TimedModel(TIMM),
    "eager": TimedModel(SE),
    "fused": TimedModel(SE, fused=True),
    "compiled": TimedModel(SE, fused=True, compiled=True),
}
# Whole detectors on a CPU.
EXPORTED: Mapping[str, ExportedModel] = {
    "onnxruntime": ExportedModel("onnx", fused=False),
    "onnxruntime-fused": ExportedModel("onnx"),
    "onnxruntime-int8": ExportedModel("onnx", "int8"),
    "openvino": ExportedModel("openvino"),
    "openvino-bf16": ExportedModel("openvino", "bfloat16"),
    "openvino-int8": ExportedModel("openvino", "int8"),
}
MODEL_NAMES = (*MODELS, BOUND, *EXPORTED)
# With a run, stock is its detector, unchanged.
RUN_MODELS = ("stock", "fused", "compiled", *EXPORTED)
# The plain network that is run in the same way, with one difference: in training, only ours folds FrozenBN.
PLAIN_OF: Mapping[str, str] = {"eager": STOCK, "fused": "stock-fused", "compiled": "stock-compiled"}


def models_for(mode: str, names: Sequence[str]) -> list[str]:
    """The names that can be timed in a mode, and always `stock`.

    In training, a compiled model is compiled but not fused.
    """
    inference_only = {name for name, model in MODELS.items() if model.fused and not model.compiled} | set(EXPORTED)
    return [
        name
        for name in MODEL_NAMES
        if name == STOCK or (name in names and (mode == "inference" or name not in inference_only))
    ]
