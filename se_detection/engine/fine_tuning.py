"""A pre-trained backbone in a detector for few images: frozen at first, then trained at a lower rate."""

import logging
from collections.abc import Callable

from detectron2.engine import HookBase
from torch import nn
from torch.optim import Optimizer

from ..errors import UserError

logger = logging.getLogger(__name__)


def backbone_of(model: nn.Module) -> nn.Module:
    """A detector's backbone: its backbone, without the FPN, or the res5 that a C4 detector has in its heads.

    Raises:
        UserError: the detector has no backbone.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UserError(
            f"SOLVER.BACKBONE_FREEZE_ITERS and BACKBONE_MULTIPLIER: a {type(model).__name__} has no backbone"
        )
    return getattr(backbone, "bottom_up", backbone)


def scale_rate(optimizer: Optimizer, part: nn.Module, factor: float) -> None:
    """Multiplies the learning rate of a part of what a new optimizer trains."""
    scaled = set(map(id, part.parameters()))
    groups = []
    for group in optimizer.param_groups:
        for chosen, rate in ((False, group["lr"]), (True, group["lr"] * factor)):
            members = [item for item in group["params"] if (id(item) in scaled) == chosen]
            if members:
                groups.append({**group, "params": members, "lr": rate})
    optimizer.param_groups = groups


class FrozenBackbone(HookBase):
    """Freezes a backbone, the statistics of its norms too, for a run's first iterations.

    Args:
        backbone: what is frozen; it depends on the iteration alone, also in a run that goes on.
        iterations: how long.
        wrap: called after what is trained has changed, which DDP looks at when it wraps a model.
    """

    def __init__(self, backbone: nn.Module, iterations: int, wrap: Callable[[], None]) -> None:
        self.backbone = backbone
        self.iterations = iterations
        self.wrap = wrap
        self.frozen: list[nn.Parameter] = []

    def before_train(self) -> None:
        """Freezes the backbone, unless the run goes on from a later iteration."""
        if self.trainer.start_iter < self.iterations:
            self.frozen = [item for item in self.backbone.parameters() if item.requires_grad]
            self._set_trained(False)

    def before_step(self) -> None:
        """Keeps the backbone frozen, or releases it."""
        if not self.frozen:
            return
        if self.trainer.iter < self.iterations:
            # Each step: an evaluation sets the whole model back to training.
            self.backbone.eval()
            return
        self.backbone.train()
        self._set_trained(True)
        self.frozen = []
        logger.info("Iteration %d: the backbone is trained from now on", self.trainer.iter)

    def _set_trained(self, trained: bool) -> None:
        for parameter in self.frozen:
            parameter.requires_grad = trained
        self.wrap()
