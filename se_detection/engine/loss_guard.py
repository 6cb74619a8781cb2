"""Losses that are not finite: the step is skipped or the run stops, with a report of the losses and images."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from ..config.defaults import flatten
from ..config.timm_config import norm_and_freeze_keys
from ..errors import UserError, counted
from ..files import parse_json, write_json
from ..runs.run_folder import NON_FINITE
from .signals import RankMaximum

# Usual learning rates for 16 images: those of detectron2's recipes, and of configs with AdamW.
RATES = {"SGD": 0.02, "ADAMW": 0.0002}
MOST_NAMES = 8

logger = logging.getLogger(__name__)


class NonFiniteLossError(UserError):
    """Too many steps in a row had a loss that is not finite."""


class LossGuard:
    """Checks the losses of all processes before a step; skips up to `SOLVER.SKIP_NON_FINITE` steps in a row.

    detectron2 checks only the main process, and the others then wait for it.

    Args:
        cfg: the config of the run.
        model: not wrapped for DDP.
        agreement: shares the losses between processes.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, agreement: RankMaximum) -> None:
        self.cfg = cfg
        self.model = model
        self.agreement = agreement
        self.skipped = self.skipped_in_a_row = 0

    def remember(self) -> None:
        """Remembers what a forward pass changes: the statistics of the norms, and RetinaNet's normalizer."""
        self.statistics = [(tensor, tensor.clone()) for tensor in norm_statistics(self.model)]
        self.normalizer = get_normalizer(self.model)

    def may_step(self, iteration: int, losses: Mapping[str, Tensor], images: Sequence[str], rate: float) -> bool:
        """Whether the gradients may be applied; all processes must call it. If not, the model is restored.

        Args:
            iteration: the current iteration.
            losses: the losses of this process.
            images: the files of this process's batch.
            rate: the learning rate.

        Raises:
            NonFiniteLossError: too many steps in a row had to be skipped.
        """
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        if not self.agreement.largest(int(not all(map(math.isfinite, values.values()))))[0]:
            self.skipped_in_a_row = 0
            return True
        for tensor, before in self.statistics:
            tensor.copy_(before)
        set_normalizer(self.model, self.normalizer)
        # JSON has no NaN.
        shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        gathered = comm.all_gather({"losses": shown, "images": list(images)})
        if comm.is_main_process():
            self._report({"iteration": iteration, "learning_rate": rate, "processes": gathered})
        infinite = [
            (name, process["images"])
            for process in gathered
            for name, value in process["losses"].items()
            if isinstance(value, str)
        ]
        which = ", ".join(sorted({name for name, _ in infinite}))
        files = list(dict.fromkeys(Path(file).name for _, batch in infinite for file in batch))
        more = f" and {len(files) - MOST_NAMES} more" if len(files) > MOST_NAMES else ""
        what = (
            f"iteration {iteration}: the loss is not finite ({which}) for the images "
            f"{', '.join(files[:MOST_NAMES])}{more}"
        )
        if self.skipped_in_a_row < self.cfg.SOLVER.SKIP_NON_FINITE:
            self.skipped_in_a_row += 1
            self.skipped += 1
            logger.warning("%s; the step is skipped (%d so far)", what, self.skipped)
            return False
        causes = "; ".join(usual_causes(self.cfg, sum(len(process["images"]) for process in gathered)))
        raise NonFiniteLossError(
            "train.non_finite_loss",
            f"{what}; usual causes: {causes}. {NON_FINITE} in {self.cfg.OUTPUT_DIR} lists losses and images",
        )

    def _report(self, entry: dict[str, object]) -> None:
        path = Path(self.cfg.OUTPUT_DIR, NON_FINITE)
        try:
            entries = parse_json(path.read_bytes())
        except (FileNotFoundError, ValueError):
            # There is no report yet, or it is corrupt.
            entries = []
        write_json(path, [*entries, entry], indent=2)


def usual_causes(cfg: CfgNode, images: int) -> list[str]:
    """The most usual causes of an infinite loss that apply to a config and a batch of all processes."""
    optimizer = cfg.SOLVER.OPTIMIZER
    usual = RATES[optimizer] / 16 * images
    causes = [
        f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR:g} for a batch of {counted(images, 'image')} (usual for {optimizer}: "
        f"{usual:g})"
    ]
    values, (norm, freeze_at) = flatten(cfg), norm_and_freeze_keys(cfg)
    if not cfg.MODEL.WEIGHTS and (values[norm] == "FrozenBN" or values[freeze_at] > 0):
        causes.append(
            f"MODEL.WEIGHTS is empty, and a random backbone does not learn with {norm} FrozenBN or "
            f"{freeze_at} above 0 (from scratch: BN, and 0)"
        )
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        causes.append("SOLVER.CLIP_GRADIENTS.ENABLED is off")
    return causes


class _Guarded(nn.Module):
    """The base class that :func:`guard_forward` adds to a model's class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # TorchScript changes the gradient of a scripted loss (RetinaNet's) after the first call in a process, by as
        # much as rounding. A resumed run must not, where it can be exact: on the CPU.
        on_gpu = any(parameter.is_cuda for parameter in self.parameters())
        try:
            with torch.jit.optimized_execution(on_gpu):  # type: ignore[attr-defined]
                return super().forward(*args, **kwargs)
        except (FloatingPointError, AssertionError) as error:
            # The assertion is that of detectron2's Boxes, in the stages of Cascade R-CNN.
            if not self.training or (isinstance(error, AssertionError) and "infinite or NaN" not in str(error)):
                raise
            # A loss that depends on all weights: DDP waits for the gradient of each.
            return {"predicted_boxes": float("nan") * sum(p.sum() for p in self.parameters() if p.requires_grad)}


def guard_forward(model: nn.Module) -> None:
    """Makes a model return a loss that is not finite where detectron2 raises an error because boxes are not.

    If one of several processes raised it, the others would wait for that process.
    """
    model.__class__ = type(type(model).__name__, (_Guarded, type(model)), {})


def weights_are_finite(model: nn.Module) -> bool:
    """Whether all parameters are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in model.parameters())


def get_normalizer(model: nn.Module) -> float | None:
    """The running mean by which RetinaNet divides its loss, which is not in its state dict; None for other models.

    Each process has its own.
    """
    return getattr(model, "loss_normalizer", None)


def gather_normalizers(model: nn.Module) -> list[float | None]:
    """:func:`get_normalizer` of each process; all must call it."""
    normalizers: list[float | None] = comm.all_gather(get_normalizer(model))
    return normalizers


def restore_normalizer(model: nn.Module, gathered: Sequence[float | None]) -> None:
    """Sets this process's value of :func:`gather_normalizers`; another number of processes share the sum equally."""
    known = [value for value in gathered if value is not None]
    processes = comm.get_world_size()
    if len(known) == processes:
        set_normalizer(model, known[comm.get_rank()])
    else:
        # It counts objects: a process has as many more of them as its batch is larger.
        set_normalizer(model, sum(known) / processes if known else None)


def set_normalizer(model: nn.Module, value: float | None) -> None:
    """Sets the value of :func:`get_normalizer`."""
    if value is not None:
        model.loss_normalizer = value  # type: ignore[assignment]
    elif "loss_normalizer" in vars(model):
        del model.loss_normalizer


def norm_statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of a model's batch norms, which change in training."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [tensor for norm in norms for tensor in norm.buffers(recurse=False)]
