"""Whether the model that a config describes can be built, found out without memory or arithmetic."""

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
    """Builds the config's backbone without memory or arithmetic, to see whether it can be.

    Raises:
        UserError: it can't be.
    """
    if cfg.MODEL.BACKBONE.NAME not in BACKBONE_REGISTRY:
        close = get_close_matches(cfg.MODEL.BACKBONE.NAME, [name for name, _ in BACKBONE_REGISTRY], n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"MODEL.BACKBONE.NAME: no backbone is named {cfg.MODEL.BACKBONE.NAME!r}{suggestion}")
    with torch.device("meta"), explained(cfg.MODEL.BACKBONE.NAME):
        backbone = build_backbone(cfg)
    check_memory(backbone)


def check_model(cfg: CfgNode) -> None:
    """Builds the config's detector, optimizer and schedule as :func:`check_backbone` builds the backbone.

    Raises:
        UserError: one of them can't be built, or test-time augmentation is asked for that detectron2 doesn't have.
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
    # What detectron2 says of its GeneralizedRCNNWithTTA in assertions, or stumbles over, when the training is over.
    boxes_or_masks = isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN)
    if cfg.TEST.AUG.ENABLED and (not boxes_or_masks or cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS):
        kind = f"{cfg.MODEL.META_ARCHITECTURE}{' with keypoints' * cfg.MODEL.KEYPOINT_ON}"
        raise UserError(
            f"TEST.AUG.ENABLED: detectron2 has test-time augmentation for boxes and masks of a GeneralizedRCNN alone, "
            f"and this is a {kind}; set it to False"
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns whatever a builder raises into a :class:`UserError` that says what could not be built."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever class: detectron2 says with many what it can't build
        # Torch's may go on with a stack of C++.
        reason = " ".join(str(error).split())[:300] or "an assertion of detectron2's failed"
        raise UserError(f"{what} can't be built: {type(error).__name__}: {reason}") from error


def check_memory(model: nn.Module) -> None:
    """Whether the CPU, on which a model's weights are made, has memory for them.

    Args:
        model: on the meta device.

    Raises:
        UserError: it has not.
    """
    tensors = [*model.parameters(), *model.buffers()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        name, largest = max(model.named_parameters(), key=lambda item: item[1].numel())
        raise UserError(
            f"this {type(model).__name__} has weights of {needed / 2**30:.0f} GiB, and the machine {there / 2**30:.0f} "
            f"GiB of memory; the largest is {name}, {tuple(largest.shape)}"
        )
