"""The detector of a run folder, for one picture at a time."""

from collections.abc import Iterator
from contextlib import suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from numpy.typing import NDArray
from torch import nn

from ..analysis.trained_run import load_trained_run, read_run_config
from ..data.coco_format import category_names, read_coco
from ..errors import UserError
from ..evaluation.coco_files import Entry
from ..evaluation.runs import read_record
from ..export import fuse_for_inference


class StrictPredictor(DefaultPredictor):
    """detectron2's, of a model that is loaded already."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        # Not DefaultPredictor's: it loads what fits, and leaves the rest random. The attributes are the same.
        self.cfg = cfg
        self.model = model
        self.aug = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT


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
        cfg = read_run_config(run)
        trained = load_trained_run(run, cfg, weights)
        self.name = run.resolve().name
        self.weights = trained.weights
        self.categories = run_categories(run, cfg)
        self.predictor = StrictPredictor(cfg, fuse_for_inference(trained.model) if fuse else trained.model)
        # What is found depends on nothing else.
        with self.weights.open("rb") as file:
            digest = file_digest(file, "sha256")
        digest.update((run / "config.yaml").read_bytes())
        digest.update(b"fused" * fuse)
        self.fingerprint = digest.hexdigest()

    def __call__(self, image: NDArray[np.uint8], image_id: int) -> list[Entry]:
        """What is found in an (H, W, 3) BGR picture, in COCO's results format, the surest first.

        Raises:
            UserError: the model finds no boxes; or the picture is so long and thin that it would be resized to nothing.
        """
        self.check_shape(image)
        output = self.predictor(image)
        if "instances" not in output:
            raise UserError(f"{self.weights}: a {type(self.predictor.model).__name__} gives no boxes; name a detector")
        entries = instances_to_coco_json(output["instances"].to("cpu"), image_id)
        # The model's classes are numbered from 0.
        ids = list(self.categories)
        return [{**entry, "category_id": ids[entry["category_id"]]} for entry in entries]

    def check_shape(self, image: NDArray[np.uint8]) -> None:
        """Whether anything is left of a picture when it is resized.

        Raises:
            UserError: nothing is.
        """
        (height, width), limits = image.shape[:2], self.predictor.cfg.INPUT
        short, longest = limits.MIN_SIZE_TEST, limits.MAX_SIZE_TEST
        if short and 0 in ResizeShortestEdge.get_output_shape(height, width, short, longest):
            raise UserError(f"{width}x{height} pixels are too long and thin for INPUT.MAX_SIZE_TEST {longest}; crop it")


def run_categories(run: Path, cfg: CfgNode) -> dict[int, str]:
    """The names of a run's classes by category id, in the model's order.

    The ids are those of its data set, if that is built in or its annotations are still there; otherwise 1, 2, ...

    Raises:
        UserError: the names are unknown, or more or fewer than the model has.
    """
    record = read_record(run)
    names = record.get("classes", [])
    # Annotations may have been edited since.
    known = (found for found in _dataset_categories(record, cfg) if not names or list(found.values()) == names)
    categories = next(known, dict(enumerate(names, 1)))
    if not categories:
        raise UserError(f"{run}: no run.json names its classes; was it trained by tools/train_net.py?")
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    number = cfg.MODEL.RETINANET.NUM_CLASSES if retinanet else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(categories) != number:
        raise UserError(f"{run}: its record has {len(categories)} classes, and config.yaml has {number}")
    return categories


def _dataset_categories(record: dict[str, Any], cfg: CfgNode) -> Iterator[dict[int, str]]:
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        # First: in this process, another run's data may be known by the same name.
        json_file = record.get("data", {}).get(name, {}).get("json")
        with suppress(UserError):
            if json_file and Path(json_file).is_file():
                yield category_names(json_file, read_coco(json_file))
        if name in MetadataCatalog:
            metadata = MetadataCatalog.get(name)
            ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
            if ids:
                yield {id_: metadata.thing_classes[ids[id_]] for id_ in sorted(ids, key=ids.get)}
