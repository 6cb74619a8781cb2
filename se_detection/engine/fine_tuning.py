"""Fine-tuning: a backbone is frozen at first."""

import logging
from collections.abc import Callable

from detectron2.engine import HookBase
from torch import nn

logger = logging.getLogger(__name__)


def backbone_of(model: nn.Module) -> nn.Module:
    """The network below the FPN (`bottom_up`), or the backbone itself if there is no FPN.

    The res5 in the heads of a C4 detector is not part of it.
    """
    backbone: nn.Module = model.get_submodule("backbone")
    return getattr(backbone, "bottom_up", backbone)


class FrozenBackbone(HookBase):
    """Freezes a backbone, with the statistics of its norms, for the first iterations (`SOLVER.BACKBONE_FREEZE_ITERS`).

    Args:
        backbone: the module to freeze.
        iterations: the number of iterations, counted from the start of the run even if it is resumed.
        wrap: called when the set of trained parameters has changed; DDP must then wrap the model again.
    """

    def __init__(self, backbone: nn.Module, *, iterations: int, wrap: Callable[[], None]) -> None:
        self.backbone = backbone
        self.iterations = iterations
        self.wrap = wrap
        self.frozen: list[nn.Parameter] = []

    def before_train(self) -> None:
        """Freezes the backbone, unless the run resumes at a later iteration."""
        if self.trainer.start_iter < self.iterations:
            self.frozen = [item for item in self.backbone.parameters() if item.requires_grad]
            self._set_trained(False)

    def before_step(self) -> None:
        """Keeps the backbone frozen, or unfreezes it."""
        if not self.frozen:
            return
        if self.trainer.iter < self.iterations:
            # At each step, because an evaluation sets the whole model back to training mode.
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
