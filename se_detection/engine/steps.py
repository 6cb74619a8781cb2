"""The batches of a training, and the check of the losses before each step."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor

from ..data.image_files import BadImage
from ..data.train_loader import SKIPPED, STEP, seed_everything
from .loss_guard import LossGuard


class SeededBatches:
    """The batches of a loader. Before each, the random number generators of the model are seeded by the iteration."""

    def __init__(self, loader: Iterable[list[dict[str, Any]]]) -> None:
        self.loader = loader
        self.files: list[str] = []
        self.skipped: list[BadImage] = []
        self.start_at(0, 0)

    def start_at(self, iteration: int, seed: int) -> None:
        """Sets the iteration of the next batch, and the seed of the run."""
        self.iteration = iteration
        self.seed = seed

    def take_skipped(self) -> list[BadImage]:
        """The images that were skipped since the last call."""
        taken, self.skipped = self.skipped, []
        return taken

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for iteration, batch in enumerate(self.loader, self.iteration):
            self.files = [str(item.get("file_name")) for item in batch]
            self.skipped += [image for item in batch for image in item.pop(SKIPPED, ())]
            # After the images are loaded: without workers, augmentation uses the same generators.
            seed_everything(self.seed, STEP, iteration, comm.get_rank())
            yield batch


class CheckedTrainer(SimpleTrainer):
    """Asks the guard before it applies gradients; detectron2 checks the loss only in the main process."""

    guard: LossGuard
    data_loader: SeededBatches

    def run_step(self) -> None:
        """Runs one step; without an update of the weights if the guard refuses it."""
        self.guard.remember()
        super().run_step()

    def _write_metrics(self, loss_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        if self.guard.may_step(self.iter, loss_dict, self.data_loader.files, rate):
            super()._write_metrics(loss_dict, *args, **kwargs)
        else:
            self._drop_gradients()

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


class CheckedAMPTrainer(CheckedTrainer, AMPTrainer):
    """The same with mixed precision."""

    def _drop_gradients(self) -> None:
        # The gradient scaler skips a step with infinite gradients.
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(torch.inf)
