"""`SOLVER.LOGGERS`: TensorBoard, Weights & Biases, MLflow and trackio, as detectron2's event writers."""

import logging
import os
import re
import secrets
from abc import abstractmethod
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage
from numpy.typing import NDArray

from ..config.defaults import flatten
from ..data.image_files import reason
from ..errors import UserError
from ..files import read_json, write_json
from ..runs.run_folder import TRACKED

# The project (MLflow: experiment) of all runs, unless the environment names another.
PROJECT = "se_detection"
# As detectron2's writers: scalars with a smoothing hint are medians over this many steps.
WINDOW = 20
# What MLflow doesn't take in the name of a metric, such as a comma in the name of a class, and its longest value.
NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")
LONGEST_VALUE = 6000

logger = logging.getLogger(__name__)


class TrackerWriter(EventWriter):
    """Sends all scalars and images to a tracker of experiments. A failure is logged, and does not end the training."""

    id: str
    max_iter = 0
    written = -1

    @abstractmethod
    def log(self, iteration: int, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]]) -> None:
        """Sends what belongs to an iteration; images are (H, W, 3), RGB."""

    @abstractmethod
    def finish(self, *, complete: bool) -> None:
        """Ends the run; `complete` if it was trained to its end."""

    def write(self) -> None:
        """Sends what is new since the last time."""
        storage = get_event_storage()
        scalars, images = defaultdict[int, dict[str, Any]](dict), defaultdict[int, dict[str, Any]](dict)
        for key, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if iteration > self.written:
                scalars[iteration][key] = value
        for name, image, iteration in storage._vis_data:
            images[iteration][name] = _to_uint8(image)
        self.written = max([self.written, *scalars])
        try:
            for iteration in sorted(scalars.keys() | images.keys()):
                self.log(iteration, scalars[iteration], images[iteration])
        except Exception as error:  # of any class: an unreachable server must not end the training
            logger.warning("%s: iteration %d was not logged: %s", type(self).__name__, storage.iter, reason(error))

    def close(self) -> None:
        """Ends the run."""
        try:
            self.finish(complete=get_event_storage().iter >= self.max_iter)
        except Exception as error:  # as above
            logger.warning("%s: the run was not closed: %s", type(self).__name__, reason(error))


class WandbWriter(TrackerWriter):
    """Weights & Biases. The project is `WANDB_PROJECT`; W&B reads its other variables, such as `WANDB_MODE`, itself.

    Args:
        folder: the run folder, which also gets W&B's files.
        config: the values that are logged, by full key.
        known: the id of a run to continue; empty for a new run.
    """

    def __init__(self, folder: Path, config: dict[str, Any], known: str) -> None:
        import wandb

        self.id = known or secrets.token_hex(4)
        self.image = wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=self.id,
            resume="allow",
            dir=folder,
            config=config,
            allow_val_change=True,
            reinit="create_new",
        )
        # W&B's own step can't go back to the checkpoint from which a run is resumed.
        self.run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]]) -> None:
        """See :class:`TrackerWriter`."""
        drawn = {name: self.image(image) for name, image in images.items()}
        self.run.log({"iteration": iteration, **scalars, **drawn})

    def finish(self, *, complete: bool) -> None:
        """See :class:`TrackerWriter`."""
        self.run.finish(exit_code=0 if complete else 1)


class MlflowWriter(TrackerWriter):
    """MLflow. `MLFLOW_EXPERIMENT_NAME` and `MLFLOW_TRACKING_URI` are MLflow's; for the arguments see above."""

    def __init__(self, folder: Path, config: dict[str, Any], known: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.client = MlflowClient()
        if known:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.id = self.client.create_run(number, run_name=folder.resolve().name).info.run_id
        # They can't be changed later, and a batch has at most a hundred.
        params = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in config.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.id, params=params[start : start + 100])

    def log(self, iteration: int, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]]) -> None:
        """See :class:`TrackerWriter`."""
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [self.metric(NOT_IN_NAMES.sub("_", key), value, now, iteration) for key, value in scalars.items()]
        self.client.log_batch(self.id, metrics=metrics)
        for name, image in images.items():
            self.client.log_image(self.id, image, key=name, step=iteration)

    def finish(self, *, complete: bool) -> None:
        """See :class:`TrackerWriter`."""
        self.client.set_terminated(self.id, "FINISHED" if complete else "KILLED")


class TrackioWriter(TrackerWriter):
    """trackio. The project is `TRACKIO_PROJECT`, `TRACKIO_SPACE_ID` is trackio's; for the arguments see above."""

    def __init__(self, folder: Path, config: dict[str, Any], known: str) -> None:
        import trackio

        # trackio finds a run to continue by its name.
        self.id = known or f"{folder.resolve().name}-{secrets.token_hex(4)}"
        self.image = trackio.Image
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.run = trackio.init(project=project, name=self.id, config=config, resume="allow", embed=False)

    def log(self, iteration: int, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]]) -> None:
        """See :class:`TrackerWriter`."""
        drawn = {name: self.image(image) for name, image in images.items()}
        self.run.log({**scalars, **drawn}, step=iteration)

    def finish(self, *, complete: bool) -> None:
        """See :class:`TrackerWriter`."""
        self.run.finish()


TENSORBOARD = "tensorboard"
# By the name of the package, which is also that of the extra.
TRACKERS = {"wandb": WandbWriter, "mlflow": MlflowWriter, "trackio": TrackioWriter}


def check_loggers(cfg: CfgNode) -> None:
    """Checks the names in `SOLVER.LOGGERS`, and that their packages are installed.

    Raises:
        UserError: one is not known or not installed.
    """
    for name in cfg.SOLVER.LOGGERS:
        if name not in (TENSORBOARD, *TRACKERS):
            known = ", ".join((TENSORBOARD, *TRACKERS))
            raise UserError("config.bad_value", f"SOLVER.LOGGERS: {name!r} is not a logger; choose from {known}")
        spec = find_spec(name)
        # A folder of this name in the working directory, where the trackers write, is not the package.
        if spec is None or spec.origin is None:
            raise UserError(
                "run.no_logger", f"SOLVER.LOGGERS: {name} is not installed: pip install 'se_detection[{name}]'"
            )


def build_loggers(cfg: CfgNode, start: int) -> list[EventWriter]:
    """The writers of `SOLVER.LOGGERS`; a run that is resumed continues its runs in the trackers.

    Args:
        start: the iteration at which the run starts or resumes.

    Raises:
        UserError: a tracker can't be opened.
    """
    folder = Path(cfg.OUTPUT_DIR)
    path = folder / TRACKED
    known = read_json(path) if path.is_file() else {}
    writers: list[EventWriter] = []
    for name in cfg.SOLVER.LOGGERS:
        if name == TENSORBOARD:
            continue
        try:
            writer = TRACKERS[name](folder, flatten(cfg), known.get(name, ""))
        except Exception as error:  # of any class
            advice = f"log in to it, or remove {name}"
            raise UserError("run.no_logger", f"SOLVER.LOGGERS: {name}: {reason(error)}; {advice}") from error
        writer.max_iter = cfg.SOLVER.MAX_ITER
        writers.append(writer)
        known[name] = writer.id
        write_json(path, known, indent=2)
    if TENSORBOARD in cfg.SOLVER.LOGGERS:
        # Last, because it removes the images; it ignores what was written for the steps that are repeated.
        writers.append(TensorboardXWriter(cfg.OUTPUT_DIR, purge_step=start or None))
    return writers


def _to_uint8(image: Any) -> NDArray[np.uint8]:
    """(H, W, 3) of one of detectron2's images: (3, H, W), uint8 or from 0 to 1."""
    pixels = np.asarray(image).transpose(1, 2, 0)
    return pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8)
