"""Hooks of the trainer: checkpoints, evaluation, the best weights, the moving average, DropBlock's schedule."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from ..checkpoint.checkpointer import LAST, StrictCheckpointer
from ..data.workers import NoBatchError
from ..errors import UserError, user_message
from ..runs.checkpoints import numbered_checkpoints
from ..runs.metrics import MetricsFile
from ..runs.run_folder import BEST, FINAL
from .loss_guard import weights_are_finite
from .signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Saves a checkpoint every `period` iterations, at the end, and when the run is asked to stop, and then stops it.

    Args:
        checkpointer: saves, with the state of all processes.
        period: in iterations; 0 for the end only.
        keep: the number of periodic checkpoints to keep, the newest; 0 for all.
        stop: the request to stop.
    """

    def __init__(self, checkpointer: StrictCheckpointer, *, period: int, keep: int, stop: StopRequest) -> None:
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self.stop = stop
        self.saved = -1

    def after_step(self) -> None:
        """Saves if it is due; stops all processes together."""
        done = self.trainer.iter + 1
        try:
            self.stop.raise_if_any()
        except Interrupted as request:
            self.save_for(request)
            raise
        if done == self.trainer.max_iter or (self.period and done % self.period == 0):
            self.save()

    def save_for(self, request: Interrupted) -> None:
        """Saves for a run that was asked to stop, and logs it."""
        self.save()
        name = signal.Signals(int(request.code or 0) - 128).name
        iteration = self.trainer.iter
        logger.info("%s: stopped after iteration %d, which was saved; --resume continues", name, iteration)

    def save(self) -> None:
        """Saves the state after the current iteration, unless it is saved already; all processes must call it.

        Raises:
            UserError: the weights are not finite, or the disk is full; older checkpoints are kept.
        """
        iteration = self.trainer.iter
        if self.saved == iteration:
            return
        if not weights_are_finite(self.checkpointer.model):
            raise UserError(
                "train.non_finite_weights",
                f"iteration {iteration}: the weights are not finite, and were not saved; continue from the checkpoint "
                "before with --resume, or start with a lower SOLVER.BASE_LR",
            )
        folder = Path(self.checkpointer.save_dir)
        name = Path(FINAL).stem if iteration + 1 == self.trainer.max_iter else f"model_{iteration:07d}"
        with _unsaved_is_explained(folder):
            self.checkpointer.save(name, iteration=iteration)
        self.saved = iteration
        if not comm.is_main_process():
            return
        # Later checkpoints exist if the user resumed from an earlier one.
        earlier = [path for number, path in numbered_checkpoints(folder).items() if number <= iteration]
        for path in earlier[: -self.keep] if self.keep else []:
            path.unlink()


class Evaluation(hooks.EvalHook):
    """Evaluates every `period` iterations and at the end. A resumed run repeats an evaluation that was interrupted.

    Args:
        evaluate: returns metrics by task.
        period: in iterations; 0 for the end only.
        checkpoints: saves when the evaluation is asked to stop.
        metrics: what the main process has logged so far.
    """

    def __init__(
        self, evaluate: Callable[[], dict[str, Any]], *, period: int, checkpoints: Checkpoints, metrics: MetricsFile
    ) -> None:
        super().__init__(period, evaluate)
        self.checkpoints = checkpoints
        self.metrics = metrics

    def before_train(self) -> None:
        """Evaluates the checkpoint from which the run resumes, if that was due and is not in the log."""
        start = self.trainer.start_iter
        due = 0 < start < self.trainer.max_iter and self._period and start % self._period == 0
        if due and not comm.all_gather(self.metrics.evaluated(start - 1))[0]:
            self.trainer.storage.iter = start - 1
            self._do_eval()
            self.trainer.storage.iter = start

    def after_step(self) -> None:
        """Evaluates if it is due."""
        try:
            super().after_step()
        except Interrupted as request:
            self.checkpoints.save_for(request)
            raise
        except NoBatchError:
            # Several processes don't get here together, and can't gather their state.
            if comm.get_world_size() == 1:
                self.checkpoints.save()
            raise

    def after_train(self) -> None:
        """Evaluates a finished training, even if it was finished before."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.trainer.storage.iter = self.trainer.max_iter
            self._do_eval()


class BestCheckpoint(HookBase):
    """Saves the weights with the highest value of a metric as `model_best.pth`.

    Args:
        checkpointer: saves, in the main process.
        metric: the name under which detectron2 logs it, such as `bbox/AP`.
        metrics: what has been logged so far.
    """

    def __init__(self, checkpointer: StrictCheckpointer, *, metric: str, metrics: MetricsFile) -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.metrics = metrics
        self.best = {"value": float("-inf"), "iteration": -1}
        self.warned = False

    def before_train(self) -> None:
        """Checks the evaluation of the checkpoint from which the run resumes."""
        iteration = self.trainer.start_iter - 1
        self._judge(self.metrics.at(iteration).get(self.metric, float("nan")), iteration)
        self.after_step()

    def after_step(self) -> None:
        """Checks the latest evaluation."""
        latest = self.trainer.storage.latest()
        if self.metric in latest:
            self._judge(*latest[self.metric])
        elif not self.warned and (evaluated := sorted(key for key in latest if key.endswith("/AP"))):
            self.warned = True
            logger.warning(
                f"SOLVER.BEST_METRIC: %s was not evaluated, so there is no {BEST}; choose from %s",
                self.metric,
                ", ".join(evaluated),
            )

    after_train = after_step

    def _judge(self, value: float, iteration: int) -> None:
        if value > self.best["value"]:
            self.best = {"value": float(value), "iteration": iteration}
            with _unsaved_is_explained(Path(self.checkpointer.save_dir)):
                self.checkpointer.save_weights(Path(BEST).stem, iteration=iteration, **{self.metric: float(value)})

    def state_dict(self) -> dict[str, Any]:
        """The best value, its iteration, and the metric."""
        return {**self.best, "metric": self.metric}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`state_dict`; the values of two metrics can't be compared."""
        if state.get("metric", self.metric) == self.metric:
            self.best = {key: state[key] for key in self.best}


class MovingAverage(HookBase):
    """timm's exponential moving average of the weights, which is evaluated and saved as the model.

    The trained weights are in the state of this hook. The decay rises to its value (timm's warm-up): otherwise the
    average of a short run would be mostly its initial weights.

    Args:
        checkpointer: saves the average as its model from now on.
        decay: the final decay, below 1.
    """

    def __init__(self, checkpointer: StrictCheckpointer, decay: float) -> None:
        # Imported here, because it takes a fifth of the start of a short run.
        from timm.utils import ModelEmaV3

        self.model: nn.Module = checkpointer.model
        self.average = ModelEmaV3(self.model, decay=decay, use_warmup=True)
        checkpointer.weights = self.average.module
        self.resumed = False

    def before_train(self) -> None:
        """Starts from the weights that were loaded."""
        if not self.resumed:
            self.average.module.load_state_dict(self.model.state_dict())

    def after_step(self) -> None:
        """Adds the new weights to the average."""
        self.average.update(self.model, step=self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        """The trained weights."""
        return {"trained": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the average, which was loaded as the model, and the trained weights."""
        self.average.module.load_state_dict(self.model.state_dict())
        self.model.load_state_dict(state["trained"])
        self.resumed = True


class DropBlockSchedule(HookBase):
    """Raises the rates of DropBlock layers linearly over the run, from 0 to those that they were made with.

    The schedule of Ghiasi et al., DropBlock, NeurIPS 2018 (Sec. 3). It depends on the iteration alone.

    Args:
        layers: timm's `DropBlock2d`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.rates = [(layer, layer.drop_prob) for layer in layers]

    def before_step(self) -> None:
        """Sets the rates of this iteration."""
        for layer, rate in self.rates:
            layer.drop_prob = rate * self.trainer.iter / self.trainer.max_iter


class Writers(hooks.PeriodicWriter):
    """detectron2's periodic writers, which also write after each evaluation: a resumed run would lose it otherwise.

    Args:
        writers: the writers.
        eval_period: in iterations; 0 for none.
    """

    def __init__(self, writers: list[EventWriter], eval_period: int) -> None:
        super().__init__(writers)
        self.eval_period = eval_period

    def after_step(self) -> None:
        """Writes if it is due; once, because detectron2's printer divides by the steps since the last time."""
        done = self.trainer.iter + 1
        evaluated = self.eval_period and done % self.eval_period == 0
        if evaluated or done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()
            # TensorBoard's writer does so; there may be none.
            self.trainer.storage.clear_images()


class PreciseBN(hooks.PreciseBN):
    """detectron2's PreciseBN, on the same images each time, so that a resumed run uses the same ones."""

    def update_stats(self) -> None:
        """Updates the statistics from the first images of the loader."""
        self._data_iter = None
        super().update_stats()


@contextmanager
def _unsaved_is_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        last = folder / LAST
        kept = f"{last.read_text()} is kept" if last.is_file() else "there is no earlier one"
        raise UserError(
            "train.unsaved_checkpoint", f"the checkpoint could not be saved ({kept}): {user_message(error) or error}"
        ) from error
