"""Checks that the model of a config can be built, on the meta device: without memory or arithmetic."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, GeneralizedRCNN, PanopticFPN, build_backbone, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from ..errors import UserError


def check_backbone(cfg: CfgNode) -> None:
    """Builds the backbone of a config on the meta device.

    Raises:
        UserError: it can't be built.
    """
    if cfg.MODEL.BACKBONE.NAME not in BACKBONE_REGISTRY:
        close = get_close_matches(cfg.MODEL.BACKBONE.NAME, [name for name, _ in BACKBONE_REGISTRY], n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"MODEL.BACKBONE.NAME: no backbone is named {cfg.MODEL.BACKBONE.NAME!r}{suggestion}")
    with torch.device("meta"), explained(cfg.MODEL.BACKBONE.NAME):
        backbone = build_backbone(cfg)
    check_memory(backbone)


def check_model(cfg: CfgNode) -> None:
    """Builds the detector, the optimizer and the schedule of a config on the meta device.

    Raises:
        UserError: one of them can't be built, or detectron2 does not support test-time augmentation for the detector.
    """
    on_meta = cfg.clone()
    on_meta.defrost()
    on_meta.MODEL.DEVICE = "meta"
    with torch.device("meta"), explained(f"this {cfg.MODEL.META_ARCHITECTURE}"):
        model = build_model(on_meta)
        optimizer = build_optimizer(cfg, model)
    check_memory(model)
    with explained("the schedule of SOLVER.LR_SCHEDULER_NAME, MAX_ITER, STEPS and WARMUP_ITERS"):
        build_lr_scheduler(cfg, optimizer)
    # detectron2's GeneralizedRCNNWithTTA fails on other detectors, but only after the training.
    boxes_or_masks = isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN)
    if cfg.TEST.AUG.ENABLED and (not boxes_or_masks or cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS):
        kind = f"{cfg.MODEL.META_ARCHITECTURE}{' with keypoints' * cfg.MODEL.KEYPOINT_ON}"
        raise UserError(
            f"TEST.AUG.ENABLED: detectron2 supports test-time augmentation only for boxes and masks of a "
            f"GeneralizedRCNN, and this is a {kind}; set it to False"
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns any exception of a builder into a :class:`UserError` that names `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # detectron2 raises many classes for what it can't build
        # torch's message may contain a C++ stack.
        reason = " ".join(str(error).split())[:300] or "an assertion of detectron2's failed"
        raise UserError(f"{what} can't be built: {type(error).__name__}: {reason}") from error


def check_memory(model: nn.Module) -> None:
    """Checks that the machine has enough memory for the weights, which are initialized on the CPU.

    Args:
        model: on the meta device.

    Raises:
        UserError: there is not enough memory.
    """
    tensors = [*model.parameters(), *model.buffers()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        name, largest = max(model.named_parameters(), key=lambda item: item[1].numel())
        raise UserError(
            f"the weights of this {type(model).__name__} need {needed / 2**30:.0f} GiB, and the machine has "
            f"{available / 2**30:.0f} GiB of memory; the largest is {name}, {tuple(largest.shape)}"
        )
