"""The detector of a run, with results in COCO's format."""

from hashlib import sha256
from pathlib import Path

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from numpy.typing import NDArray

from ..data.coco_format import Entry
from ..files import file_digest
from ..runs.run_folder import CONFIG
from .predictor import SEPredictor


class Detector:
    """The detector of a run, on a GPU if there is one.

    Args:
        run: the folder of the run, with `config.yaml`, a checkpoint and `run.json`.
        weights: a checkpoint; by default the run's newest.
        fuse: make it faster with :func:`se_detection.fuse_for_inference`.

    Raises:
        UserError: the folder is not a run, the weights can't be read or don't fit, or the classes are unknown.
    """

    def __init__(self, run: Path, weights: Path | None = None, *, fuse: bool = False) -> None:
        self.predictor = SEPredictor.from_run(run, weights, fuse=fuse)
        self.name = run.resolve().name
        self.weights = self.predictor.weights
        self.categories = self.predictor.categories
        # The detections depend on nothing else.
        digest = sha256(file_digest(self.weights).encode() + (run / CONFIG).read_bytes())
        digest.update(b"fused" * fuse)
        self.fingerprint = digest.hexdigest()

    def __call__(self, image: NDArray[np.uint8], image_id: int) -> list[Entry]:
        """Detections in an (H, W, 3) BGR image, in COCO's results format, the highest-scoring first.

        Raises:
            UserError: the image is too long and thin to be resized.
        """
        # The model's classes are numbered from 0.
        ids = list(self.categories)
        entries = instances_to_coco_json(self.predictor(image), image_id)
        return [{**entry, "category_id": ids[entry["category_id"]]} for entry in entries]
