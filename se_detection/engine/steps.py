"""The batches of a training, and the check before each step."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor

from ..data.image_files import BadImage
from ..data.train_loader import SKIPPED, STEP, seed_everything


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
    """Calls `may_step` before it applies gradients; detectron2 checks the loss only in the main process."""

    may_step: weakref.WeakMethod[Callable[[dict[str, Tensor]], bool]]

    def _write_metrics(self, loss_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        method = self.may_step()
        if method is None or method(loss_dict):
            super()._write_metrics(loss_dict, *args, **kwargs)


class CheckedAMPTrainer(CheckedTrainer, AMPTrainer): ...
