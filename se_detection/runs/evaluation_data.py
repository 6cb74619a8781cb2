"""The data on which a trained detector is analysed: the test set of its run, or other COCO-format data."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from ..config.defaults import classes_node
from ..data.coco_files import load_annotations
from ..data.coco_format import Entry
from ..data.coco_sets import check_coco, check_registered, register_coco_json
from ..data.mapper import CheckedMapper
from ..data.workers import SignalSafeLoader
from ..errors import UserError
from ..files import file_digest
from .record import read_record
from .run_folder import CONFIG, RECORD
from .trained_run import TrainedRun

T = TypeVar("T")


@dataclass(frozen=True)
class EvaluationData:
    """Images with annotations.

    Args:
        annotations: the COCO annotation file.
        image_root: the folder of the images.
        classes: names in the model's order.
        category_ids: the COCO category id of each class.
        images: detectron2's dataset dicts, in the order of the set.
    """

    annotations: Path
    image_root: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: list[Entry]

    def classes_in(self, image: Entry) -> list[int]:
        """The indices of the classes of an image's objects, crowds included, each once."""
        return sorted({annotation["category_id"] for annotation in image["annotations"]})

    def coco(self) -> COCO:
        """pycocotools' index of only these images and their annotations."""
        content = load_annotations(self.annotations).dataset
        kept = {image["image_id"] for image in self.images}
        return load_annotations(
            {
                **content,
                "images": [image for image in content["images"] if image["id"] in kept],
                "annotations": [item for item in content["annotations"] if item["image_id"] in kept],
            }
        )


def open_evaluation_data(run: TrainedRun, given: Sequence[Path] | None, limit: int | None) -> EvaluationData:
    """Opens the test set of a run, or a given COCO file with the folder of its images.

    Args:
        given: the file and the folder; None for the run's test set.
        limit: the largest number of images, spread evenly over the set; None for all.

    Raises:
        UserError: the data is gone, can't be used, or does not have the classes of the run.
    """
    if limit is not None and limit < 1:
        raise UserError("data.bad_count", f"--images {limit}: give at least 1")
    record = read_record(run.folder)
    if given:
        json_file, image_root = given
        check_coco(json_file, image_root)
        name = str(json_file.absolute())
        register_coco_json(name, json_file, image_root)
    else:
        names = list(run.cfg.DATASETS.TEST)
        if len(names) != 1:
            message = f"{run.folder} has {len(names)} test sets; name one by --split JSON IMAGES"
            raise UserError("data.no_test_set", message)
        name = names[0]
        register_recorded(run.folder, name, "; restore it, or name the data by --split JSON IMAGES")
    metadata = MetadataCatalog.get(name)
    # A set that is registered without files has no annotations that could be read again.
    if metadata.get("evaluator_type") != "coco" or not (metadata.get("json_file") and metadata.get("image_root")):
        message = f"data set {name!r} is not a COCO-format set; give one by --split JSON IMAGES"
        raise UserError("data.no_test_set", message)
    images = DatasetCatalog.get(name)
    classes = list(metadata.thing_classes)
    number = run.cfg.MODEL[classes_node(run.cfg)].NUM_CLASSES
    known = record.get("classes") or classes
    if classes != known or len(classes) != number:
        raise UserError(
            "data.other_classes",
            f"{metadata.json_file}: its categories ({len(classes)}: {_first(classes)}) are not those of the run "
            f"({number}: {_first(known)}); give data with the classes that {run.folder} was trained on",
        )
    category_ids = sorted(metadata.thing_dataset_id_to_contiguous_id.items(), key=lambda item: item[1])
    return EvaluationData(
        Path(PathManager.get_local_path(metadata.json_file)).absolute(),
        Path(metadata.image_root).absolute(),
        tuple(classes),
        tuple(category_id for category_id, _ in category_ids),
        spread(images, limit or len(images)),
    )


def register_recorded(folder: Path, name: str, remedy: str) -> None:
    """Registers a data set from the record of a run with detectron2, unless it is registered already.

    Args:
        folder: the run folder.
        name: the name of the data set.
        remedy: the end of the error message if it is not available.

    Raises:
        UserError: its files are gone, or it is neither registered nor in the record.
    """
    recorded = read_record(folder).get("data", {}).get(name, {})
    if not recorded and name not in DatasetCatalog:
        raise UserError(
            "data.not_found", f"{folder}: its data set {name!r} is neither registered nor in {RECORD}{remedy}"
        )
    if recorded and all(recorded.values()):
        gone = [path for path in recorded.values() if not Path(path).exists()]
        if not gone:
            # Refuses another run's data that is registered under the same name.
            register_coco_json(name, recorded["json"], recorded["images"])
        elif name not in DatasetCatalog:
            raise UserError("data.not_found", f"{folder / RECORD}: {gone[0]} is gone{remedy}")
    check_registered(name)


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, spread evenly over all."""
    places = np.unique(np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int))
    return [items[place] for place in places]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def load_image(cfg: CfgNode, file: Path) -> Entry:
    """Loads an image file as the detector's input, resized as for evaluation.

    Raises:
        UserError: the file can't be read.
    """
    image: Entry | None = CheckedMapper(cfg, is_train=False)({"file_name": str(file), "image_id": 0})
    assert image is not None  # only in training
    return image


def image_batches(cfg: CfgNode, images: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Loads images as the detector's inputs, in batches of one, in the given order.

    Raises:
        UserError: an image can't be read.
    """
    mapper = CheckedMapper(cfg, is_train=False)
    loader = build_detection_test_loader(
        dataset=list(images), mapper=mapper, num_workers=min(cfg.DATALOADER.NUM_WORKERS, len(images))
    )
    return iter(SignalSafeLoader(loader))


def coco_results(image: Entry, found: Instances, split: EvaluationData) -> list[Entry]:
    """Converts the detections in an image to COCO's results format."""
    entries = instances_to_coco_json(found.to("cpu"), image["image_id"])
    return [{**entry, "category_id": split.category_ids[entry["category_id"]]} for entry in entries]


def fingerprint(run: TrainedRun, split: EvaluationData) -> dict[str, str]:
    """Identifies the inputs of an analysis: SHA-256 digests of the weights, config, annotations and image ids."""
    files = {"weights": run.weights, "config": run.folder / CONFIG, "annotations": split.annotations}
    names = "\n".join(str(image["image_id"]) for image in split.images)
    digests = {what: file_digest(path) for what, path in files.items()}
    return {**digests, "images": hashlib.sha256(names.encode()).hexdigest()}
