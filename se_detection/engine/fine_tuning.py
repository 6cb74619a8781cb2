"""Fine-tuning: a backbone is frozen at first, or trained at a lower learning rate; clipping of its gradients."""

import logging
from collections.abc import Callable, Iterable

from detectron2.engine import HookBase
from detectron2.solver.build import _generate_optimizer_class_with_gradient_clipping
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


def backbone_of(model: nn.Module) -> nn.Module:
    """The network below the FPN (`bottom_up`), or the backbone itself if there is no FPN.

    The res5 in the heads of a C4 detector is not part of it.
    """
    backbone: nn.Module = model.get_submodule("backbone")
    return getattr(backbone, "bottom_up", backbone)


def scale_rate(optimizer: Optimizer, module: nn.Module, factor: float) -> None:
    """Multiplies the learning rate of one module's parameters in a new optimizer."""
    scaled = set(map(id, module.parameters()))
    groups = []
    for group in optimizer.param_groups:
        for chosen, rate in ((False, group["lr"]), (True, group["lr"] * factor)):
            members = [item for item in group["params"] if (id(item) in scaled) == chosen]
            if members:
                groups.append({**group, "params": members, "lr": rate})
    optimizer.param_groups = groups


def clip_values(optimizer: Optimizer, limit: float) -> None:
    """Replaces detectron2's clipping by value, in which torch fails on a parameter without a gradient.

    A frozen backbone has no gradients, and after a skipped step, nothing has.
    """

    def clip(parameters: Iterable[nn.Parameter]) -> None:
        if trained := [item for item in parameters if item.grad is not None]:
            clip_grad_value_(trained, limit)

    plain = type(optimizer).__base__
    optimizer.__class__ = _generate_optimizer_class_with_gradient_clipping(plain, global_clipper=clip)


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
