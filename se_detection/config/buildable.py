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
from .meta_device import Uninitialized


def check_backbone(cfg: CfgNode) -> None:
    """Builds the backbone of a config on the meta device.

    Raises:
        UserError: it can't be built.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY:
        close = get_close_matches(name, [known for known, _ in BACKBONE_REGISTRY], n=1)
        suggestion = f"did you mean {close[0]}?" if close else "use one of detectron2's or this project's"
        raise UserError("config.unknown_backbone", f"MODEL.BACKBONE.NAME: no backbone is named {name!r}; {suggestion}")
    with torch.device("meta"), Uninitialized(), explained(name):
        build_backbone(cfg)


def check_model(cfg: CfgNode) -> None:
    """Builds the detector, the optimizer and the schedule of a config on the meta device.

    Raises:
        UserError: one of them can't be built, or detectron2 does not support test-time augmentation for the detector.
    """
    on_meta = cfg.clone()
    on_meta.defrost()
    on_meta.MODEL.DEVICE = "meta"
    with torch.device("meta"), Uninitialized(), explained(f"this {cfg.MODEL.META_ARCHITECTURE}"):
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
            "config.no_augmentation",
            f"TEST.AUG.ENABLED: detectron2 supports test-time augmentation only for boxes and masks of a "
            f"GeneralizedRCNN, and this is a {kind}; set it to False",
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
        said = f"{type(error).__name__}: {reason}"
        raise UserError("config.not_buildable", f"{what} can't be built ({said}); correct the config") from error


def check_memory(model: nn.Module) -> None:
    """Raises a :class:`UserError` if the weights of a model on the meta device are larger than the machine's memory."""
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            "config.too_large",
            f"the weights of this {type(model).__name__} need {needed / 2**30:.0f} GiB, and the machine has "
            f"{available / 2**30:.0f} GiB of memory; lower the channels",
        )
