"""Parameters and multiply-adds of networks and detectors, counted by torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import FPN, Backbone, build_model
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config.buildable import check_backbone, explained
from ..config.timm_config import has_timm_backbone
from ..errors import UserError

# What convolutions and linear layers call. torch also counts attention, which the paper does not have.
OPERATORS = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)
PART_NAMES = {"proposal_generator": "RPN", "roi_heads": "heads"}


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
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    model.train(training)
    root = type(model).__name__
    return defaultdict(
        int,
        {
            # torch counts a multiply-add as two operations.
            name.removeprefix(root).removeprefix("."): sum(counts.get(key, 0) for key in OPERATORS) // 2
            for name, counts in counter.get_flop_counts().items()
        },
    )


def backbone_gflops(backbone: Backbone, height: int, width: int) -> float:
    """10⁹ multiply-adds of a detector's backbone and FPN for one image, padded as detectron2 does.

    Convolutions and linear layers are counted, as in the paper.
    """
    device = next(backbone.parameters()).device
    image = torch.zeros(1, 3, *padded_size(backbone, height, width), device=device)
    return multiply_adds(backbone, image)[""] / 1e9


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width in pixels of a 4:3 image at the test size of a config, or at 800 if images are not resized."""
    height = cfg.INPUT.MIN_SIZE_TEST or 800
    return height, min(round(height * 4 / 3), cfg.INPUT.MAX_SIZE_TEST)


def padded_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels after detectron2's padding, to multiples of the backbone's `size_divisibility`."""
    step = max(backbone.size_divisibility, 1)
    return -(-height // step) * step, -(-width // step) * step


def detector_complexity(cfg: CfgNode, size: Sequence[int] | None = None) -> dict[str, Any]:
    """Counts a detector's parameters and multiply-adds by part.

    The parts are backbone, FPN (if there is one), RPN and heads; for RetinaNet they are backbone, FPN and head. The
    number of proposals is always `MODEL.RPN.POST_NMS_TOPK_TEST`, so that it does not depend on the image and the
    weights.

    Args:
        cfg: the detector's config.
        size: height and width of the image in pixels; by default a 4:3 image at the test size of the config.

    Returns:
        For JSON: `detector`, its architecture and backbone; `size` of the image and `padded` size; `proposals`, None
        without an RPN; and `parts`, the last of which is the total: `part`, `parameters`, and `gflops`, the 10⁹
        multiply-adds of convolutions and linear layers.

    Raises:
        UserError: the detector is not counted or can't be built.
    """
    # Masks and keypoints are computed for the detections in an image; torch does not count deformable convolutions.
    not_counted = {key: cfg.MODEL[key] for key in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS")}
    not_counted["RESNETS.DEFORM_ON_PER_STAGE"] = any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    for key, used in not_counted.items():
        if used:
            raise UserError("model.not_counted", f"MODEL.{key}: such detectors are not counted; set it to False")
    cfg, proposals = cfg.clone(), cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    # The heads are counted for one proposal.
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1
    height, width = size or image_size(cfg)
    check_backbone(cfg)
    with explained(f"this {cfg.MODEL.META_ARCHITECTURE}"):
        detector = build_model(cfg)
        flops = multiply_adds(detector, [{"image": torch.zeros(3, height, width)}])
    parts: dict[str, tuple[int, int]] = {}
    for name, module in detector.named_children():
        times = proposals if name == "roi_heads" else 1
        parts[PART_NAMES.get(name, name)] = count_parameters(module), times * flops[name]
    if isinstance(detector.backbone, FPN):
        bottom_up = count_parameters(detector.backbone.bottom_up), flops["backbone.bottom_up"]
        parameters, count = parts.pop("backbone")
        parts = {"backbone": bottom_up, "FPN": (parameters - bottom_up[0], count - bottom_up[1]), **parts}
    parts["total"] = sum(one for one, _ in parts.values()), sum(other for _, other in parts.values())
    return {
        "detector": f"{cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.BACKBONE.NAME}"
        + (f" ({cfg.MODEL.TIMM.NAME})" if has_timm_backbone(cfg) else ""),
        "size": (height, width),
        "padded": padded_size(detector.backbone, height, width),
        "proposals": proposals if hasattr(detector, "roi_heads") else None,
        "parts": [
            {"part": part, "parameters": parameters, "gflops": count / 1e9}
            for part, (parameters, count) in parts.items()
            if parameters
        ],
    }


def detector_table(complexity: Mapping[str, Any]) -> str:
    """The result of :func:`detector_complexity` as a table, with a note on the counted operations."""
    rows = [[row["part"], f"{row['parameters'] / 1e6:.3f}", f"{row['gflops']:.3f}"] for row in complexity["parts"]]
    table = tabulate(
        rows,
        ["part", "params (M)", "GFLOPs"],
        disable_numparse=True,
        colalign=["left", "right", "right"],
    )
    (height, width), (padded_height, padded_width) = complexity["size"], complexity["padded"]
    note = (
        f"{complexity['detector']}. GFLOPs: 10⁹ multiply-adds of convolutions and linear layers\n"
        f"for one image of {height}×{width}, padded to {padded_height}×{padded_width}"
    )
    if complexity["proposals"] is not None:
        note += f", and {complexity['proposals']} proposals (MODEL.RPN.POST_NMS_TOPK_TEST)"
    return f"{table}\n\n{note}."
