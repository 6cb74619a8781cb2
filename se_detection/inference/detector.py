"""The detector of a run folder, for one image at a time, in COCO's results format."""

from hashlib import file_digest
from pathlib import Path

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from numpy.typing import NDArray

from ..data.coco_format import Entry
from .predictor import SEPredictor


class Detector:
    """The detector of a run, on a GPU if there is one.

    Args:
        run: its folder, as tools/train_net.py leaves it: `config.yaml`, a checkpoint, `run.json`.
        weights: a checkpoint; by default the run's newest, which is what its evaluation is of.
        fuse: make it faster by :func:`se_detection.export.fuse_for_inference`.

    Raises:
        UserError: the folder is no run's, the weights can't be read or don't fit, or the classes are unknown.
    """

    def __init__(self, run: Path, weights: Path | None = None, *, fuse: bool = False) -> None:
        self.predictor = SEPredictor.from_run(run, weights, fuse=fuse)
        self.name = run.resolve().name
        self.weights = self.predictor.weights
        self.categories = self.predictor.categories
        # What is found depends on nothing else.
        with self.weights.open("rb") as file:
            digest = file_digest(file, "sha256")
        digest.update((run / "config.yaml").read_bytes())
        digest.update(b"fused" * fuse)
        self.fingerprint = digest.hexdigest()

    def __call__(self, image: NDArray[np.uint8], image_id: int) -> list[Entry]:
        """What is found in an (H, W, 3) BGR image, in COCO's results format, the surest first.

        Raises:
            UserError: the model finds no boxes; or the image is so long and thin that it would be resized to nothing.
        """
        entries = instances_to_coco_json(self.predictor(image), image_id)
        # The model's classes are numbered from 0.
        ids = list(self.categories)
        return [{**entry, "category_id": ids[entry["category_id"]]} for entry in entries]
