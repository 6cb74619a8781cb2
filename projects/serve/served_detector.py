"""A detector of the demo: its detections, the drawn image, and the map of its gates."""

import shlex
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from numpy.typing import NDArray
from PIL import Image

from se_detection.data.coco_format import Entry
from se_detection.errors import UserError
from se_detection.files import file_digest, read_json
from se_detection.gates.excitations import STATE, STATISTICS, Excitations
from se_detection.gates.heat_map import energy_maps, measure_effect
from se_detection.gates.recorder import se_gates
from se_detection.gates.statistics import load_statistics
from se_detection.inference.predictor import SEPredictor
from se_detection.runs.evaluation_data import EvaluationData
from se_detection.runs.run_folder import CONFIG, EXCITATIONS
from se_detection.runs.trained_run import TrainedRun
from se_detection.visualization.drawing import class_colours, draw_boxes

# The longer side of drawn images, in pixels.
SHOWN_SIZE = 1600


class ServedDetector:
    """The detector of a run. Images are (H, W, 3) arrays in BGR.

    Args:
        run: the run folder.
        weights: a checkpoint of the run; by default the newest.
        fuse: apply :func:`se_detection.fuse_for_inference`; a fused detector has no gates.

    Raises:
        UserError: the detector can't be loaded, or does not detect boxes.
    """

    def __init__(self, run: Path, weights: Path | None = None, *, fuse: bool = False) -> None:
        self.run = run
        self.predictor = SEPredictor.from_run(run, weights, fuse=fuse)
        # The files may change after loading.
        self.made_of = {"weights": file_digest(self.predictor.weights), "config": file_digest(run / CONFIG)}
        self.gates = {} if fuse else se_gates(self.predictor.model)
        self.names = dict(enumerate(self.predictor.classes))
        # Warm-up: the first forward pass is slower.
        self.predictor(np.zeros((64, 64, 3), np.uint8))

    def detect(self, image: NDArray[np.uint8]) -> tuple[list[Entry], float]:
        """Detections, the highest-scoring first, and the seconds of resizing and the forward pass.

        Raises:
            UserError: the image is too long and thin.
        """
        started = time.perf_counter()
        instances = self.predictor(image)
        seconds = time.perf_counter() - started
        return instances_to_coco_json(instances, 0), seconds

    def draw(self, image: NDArray[np.uint8], entries: list[Entry]) -> Image.Image:
        """Draws detections on a copy of an image."""
        return draw_boxes(_in_rgb(image), entries, self.names, class_colours(self.names), longest=SHOWN_SIZE)

    def gate_map(self, image: NDArray[np.uint8]) -> Image.Image:
        """Where the gates change the features of an image, compared with their mean over the run's test set.

        Raises:
            UserError: the mean gates are missing or those of other weights, or the image is too long and thin.
        """
        effect = measure_effect(self._mean_gates(), self.predictor.entry(image, "BGR"))
        if not effect.energy:
            raise UserError("gates.none", "the backbone has no SE gates, so there is no map; choose an SE detector")
        shown = _in_rgb(image)
        # matplotlib's memory and time grow with the pixels of each panel.
        shown.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
        file = BytesIO()
        energy_maps(effect, shown).savefig(file, format="png", bbox_inches="tight")
        return Image.open(file).convert("RGB")

    def _mean_gates(self) -> Excitations:
        """What `se-det analyze excitations` has computed. The data set, which it needs, may not be on this machine."""
        folder = self.run / EXCITATIONS
        try:
            known = read_json(folder / STATE)["of"]
            if any(known[what] != digest for what, digest in self.made_of.items()):
                raise ValueError("other weights")
            statistics, _ = load_statistics(folder / STATISTICS)
        except Exception as error:  # of any class, as the files may hold anything
            command = f"se-det analyze excitations --run {shlex.quote(str(self.run))} --no-ablation --overwrite"
            text = f"the map needs the mean gates of {self.predictor.weights.name}; run {command}, then try again"
            raise UserError("gates.no_means", text) from error
        trained = TrainedRun(self.run, self.predictor.cfg, self.predictor.model, self.predictor.weights)
        data = EvaluationData(Path(), Path(), self.predictor.classes, tuple(self.predictor.categories), [])
        return Excitations(trained, data, self.gates, statistics, None, folder)


def _in_rgb(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
