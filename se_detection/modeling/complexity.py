"""Parameters and multiply-adds of networks and detectors."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone, RetinaNet, build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.nn import FlopCountAnalysis
from tabulate import tabulate
from torch import Tensor, nn

from ..config.buildable import check_backbone
from ..errors import UserError

# fvcore's names for convolutions and linear layers. It also counts norms and resizing, which the paper does not.
OPERATORS = ("conv", "linear", "addmm")

# fvcore does not count deformable convolutions.
NOT_DEFORMABLE: dict[str, Sequence[Any]] = {"RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4,)}

COUNTED: dict[str, dict[str, Sequence[Any]]] = {
    "RetinaNet": NOT_DEFORMABLE,
    "GeneralizedRCNN": {
        "PROPOSAL_GENERATOR.NAME": ("RPN",),
        "ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads", "SERes5ROIHeads"),
        "MASK_ON": (False,),
        "KEYPOINT_ON": (False,),
        "LOAD_PROPOSALS": (False,),
        **NOT_DEFORMABLE,
    },
}

MIN_SIZE = 32  # the stride of res5


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a model, frozen ones included; buffers (such as FrozenBN's) are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, *inputs: Any) -> Mapping[str, int]:
    """The multiply-adds of convolutions and linear layers by module, for one forward call.

    Args:
        model: it is run in evaluation mode, and put back into its former mode.
        inputs: the arguments of its `forward`.

    Returns:
        A count for each module by name, including its children; the name of the whole model is `""`. A module that is
        not called, or not through its `forward`, has 0.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        counter = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = counter.by_module_and_operator()
    model.train(training)
    counts = {name: int(sum(operators[key] for key in OPERATORS)) for name, operators in by_module.items()}
    return defaultdict(int, counts)


def backbone_gflops(backbone: Backbone, height: int, width: int) -> float:
    """10⁹ multiply-adds of a detector's backbone and FPN for one image, padded as detectron2 does.

    Convolutions and linear layers are counted, as in the paper.
    """
    device = next(backbone.parameters()).device
    image = torch.zeros(1, 3, *padded_size(backbone, height, width), device=device)
    return multiply_adds(backbone, image)[""] / 1e9


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width in pixels of a 4:3 image at the test size of a config."""
    height = cfg.INPUT.MIN_SIZE_TEST
    return height, min(round(height * 4 / 3), cfg.INPUT.MAX_SIZE_TEST)


def padded_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels after detectron2's padding, to multiples of the backbone's `size_divisibility`."""
    step = max(backbone.size_divisibility, 1)
    return -(-height // step) * step, -(-width // step) * step


@dataclass(frozen=True, kw_only=True)
class DetectorComplexity:
    """The parameters and the multiply-adds of the parts of a detector, for one image.

    Args:
        detector: `MODEL.META_ARCHITECTURE` and `MODEL.BACKBONE.NAME`.
        size: the image's height and width in pixels.
        padded: the size after detectron2's padding, for which the multiply-adds are counted.
        proposals: the number of proposals for the heads, `MODEL.RPN.POST_NMS_TOPK_TEST`; None without an RPN.
        parts: for each part, its parameters and its 10⁹ multiply-adds of convolutions and linear layers.
    """

    detector: str
    size: tuple[int, int]
    padded: tuple[int, int]
    proposals: int | None
    parts: dict[str, tuple[int, float]]

    def total(self) -> tuple[int, float]:
        """Parameters and GFLOPs of the whole detector."""
        parameters, gflops = zip(*self.parts.values(), strict=True)
        return sum(parameters), sum(gflops)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON, with the total as another part."""
        parts = {**self.parts, "total": self.total()}
        rows = [
            {"part": part, "parameters": parameters, "gflops": gflops} for part, (parameters, gflops) in parts.items()
        ]
        return {**asdict(self), "parts": rows}


def detector_complexity(cfg: CfgNode, size: Sequence[int] | None = None) -> DetectorComplexity:
    """Counts a detector's parameters and multiply-adds by part.

    The parts are backbone, FPN (if there is one), RPN and heads; for RetinaNet they are backbone, FPN and head. The
    number of proposals is always `MODEL.RPN.POST_NMS_TOPK_TEST`, so that it does not depend on the image and the
    weights.

    Args:
        cfg: the detector's config.
        size: height and width of the image in pixels; by default a 4:3 image at the test size of the config.

    Raises:
        UserError: the detector is not counted or can't be built, or the size is too small for it.
    """
    _check_counted(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    height, width = size or image_size(cfg)
    if min(height, width) < MIN_SIZE:
        raise UserError(f"size: {height} {width} is too small; give a height and a width of at least {MIN_SIZE} pixels")
    try:
        check_backbone(cfg)
        detector = build_model(cfg)
    except (KeyError, AssertionError) as error:  # raised by detectron2 for what it can't build
        reason = " ".join(repr(error).split())
        raise UserError(f"this detector can't be built: {reason}") from error
    padded = padded_size(detector.backbone, height, width)
    flops = multiply_adds(_Layers(detector), torch.zeros(1, 3, *padded))

    backbone = detector.backbone
    backbone_parameters, backbone_flops = count_parameters(backbone), flops["detector.backbone"]
    parts = {"backbone": (backbone_parameters, backbone_flops)}
    if isinstance(backbone, FPN):
        bottom_up_parameters, bottom_up_flops = (
            count_parameters(backbone.bottom_up),
            flops["detector.backbone.bottom_up"],
        )
        parts = {
            "backbone": (bottom_up_parameters, bottom_up_flops),
            "FPN": (backbone_parameters - bottom_up_parameters, backbone_flops - bottom_up_flops),
        }
    proposals = None
    if isinstance(detector, RetinaNet):
        parts["head"] = count_parameters(detector.head), flops["detector.head"]
    else:
        proposals = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        parts["RPN"] = count_parameters(detector.proposal_generator), flops["detector.proposal_generator.rpn_head"]
        for_one = sum(flops[f"detector.roi_heads.{name}"] for name, _ in detector.roi_heads.named_children())
        parts["heads"] = count_parameters(detector.roi_heads), proposals * for_one
    return DetectorComplexity(
        detector=f"{cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.BACKBONE.NAME}",
        size=(height, width),
        padded=padded,
        proposals=proposals,
        parts={part: (parameters, count / 1e9) for part, (parameters, count) in parts.items()},
    )


def detector_table(complexity: DetectorComplexity, tablefmt: str = "simple") -> str:
    """A table with a row for each part of a detector and for the total, and a note on the counted operations."""
    parts = {**complexity.parts, "total": complexity.total()}
    rows = [[part, f"{count / 1e6:.3f}", f"{gflops:.3f}"] for part, (count, gflops) in parts.items()]
    table = tabulate(
        rows,
        ["part", "params (M)", "GFLOPs"],
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=["left", "right", "right"],
    )
    (height, width), (padded_height, padded_width) = complexity.size, complexity.padded
    note = (
        f"{complexity.detector}. GFLOPs: 10⁹ multiply-adds of convolutions and linear layers\n"
        f"for one image of {height}×{width}, padded to {padded_height}×{padded_width}"
    )
    if complexity.proposals is not None:
        note += f", and {complexity.proposals} proposals (MODEL.RPN.POST_NMS_TOPK_TEST)"
    return f"{table}\n\n{note}."


def _check_counted(cfg: CfgNode) -> None:
    architecture = cfg.MODEL.META_ARCHITECTURE
    keys = {"META_ARCHITECTURE": tuple(COUNTED), **COUNTED.get(architecture, {})}
    for key, choices in keys.items():
        value = reduce(getattr, key.split("."), cfg.MODEL)
        if value not in choices:
            raise UserError(f"MODEL.{key}: detectors with {value} are not counted, only {', '.join(map(str, choices))}")


class _Layers(nn.Module):
    """The layers that a detector runs for an image, with one proposal instead of those of the RPN."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Any:
        detector: Any = self.detector
        features = detector.backbone(image)
        if isinstance(detector, RetinaNet):
            return features, detector.head([features[name] for name in detector.head_in_features])
        rpn, heads = detector.proposal_generator, detector.roi_heads
        proposals = rpn.rpn_head([features[name] for name in rpn.in_features])
        if isinstance(heads, Res5ROIHeads):
            region = heads.res5(_one_proposal(features[heads.in_features[0]], heads.pooler)).mean(dim=(2, 3))
        else:
            region = heads.box_head(_one_proposal(features[heads.box_in_features[0]], heads.box_pooler))
        return features, proposals, heads.box_predictor(region)


def _one_proposal(feature: Tensor, pooler: ROIPooler) -> Tensor:
    return feature.new_zeros(1, feature.shape[1], *pooler.output_size)
