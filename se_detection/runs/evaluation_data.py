"""The images that a trained detector is looked at with: a run's test set, or other COCO-format data."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from ..data.worker_signals import SignalSafeLoader
from ..errors import UserError
from ..files import file_digest
from .record import read_record
from .trained_run import TrainedRun


@dataclass(frozen=True)
class EvaluationData:
    """Images with annotations.

    Args:
        annotations: COCO's instances.
        image_root: the images' folder.
        classes: names in the model's order.
        category_ids: the annotations' id of each class.
        images: detectron2's dictionaries, in the order of the set.
    """

    annotations: Path
    image_root: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: list[Entry]

    def classes_in(self, image: Entry) -> list[int]:
        """The classes of an image's objects, crowds included, each once, by their place in `classes`."""
        return sorted({annotation["category_id"] for annotation in image["annotations"]})

    def coco(self) -> COCO:
        """pycocotools' index of these images and their annotations alone."""
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
    """The run's test set as recorded, or a COCO file and the folder of its images.

    Args:
        given: the file and the folder.
        limit: at most so many images, spread evenly over the set.

    Raises:
        UserError: the data is gone, can't be used, or has other classes than the run.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--images {limit}: give at least 1")
    record = read_record(run.folder)
    if given:
        json_file, image_root = given
        check_coco(json_file, image_root)
        name = str(json_file.absolute())
        register_coco_json(name, json_file, image_root)
    else:
        names = list(run.cfg.DATASETS.TEST)
        if len(names) != 1:
            raise UserError(f"{run.folder} has {len(names)} test sets; name what to look at by --split JSON IMAGES")
        name = names[0]
        register_recorded(run.folder, name, "; bring it back, or name the data by --split JSON IMAGES")
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco":
        raise UserError(f"data set {name!r} is not evaluated as COCO is; give COCO-format data by --split JSON IMAGES")
    images = DatasetCatalog.get(name)
    classes = list(metadata.thing_classes)
    number = run.cfg.MODEL[classes_node(run.cfg)].NUM_CLASSES
    known = record.get("classes") or classes
    if classes != known or len(classes) != number:
        raise UserError(
            f"{metadata.json_file}: its {len(classes)} categories ({_first(classes)}) are not the {number} "
            f"of the run ({_first(known)}); give data with the classes that {run.folder} was trained on"
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
    """Registers a data set of a run's record with detectron2, unless the same is registered already.

    Args:
        folder: the run's.
        name: of one of its data sets.
        remedy: the end of the message where its files are gone.

    Raises:
        UserError: its files are gone, or it is not registered and not in the record.
    """
    recorded = read_record(folder).get("data", {}).get(name, {})
    registered = name in DatasetCatalog
    # In this process, another run's data may be known by the same name.
    if (
        recorded
        and all(recorded.values())
        and not (registered and MetadataCatalog.get(name).get("json_file") == recorded["json"])
    ):
        gone = [path for path in recorded.values() if not Path(path).exists()]
        if gone and not registered:
            raise UserError(f"{folder / 'run.json'}: {gone[0]} is gone{remedy}")
        if not gone:
            register_coco_json(name, recorded["json"], recorded["images"])
    check_registered(name)


def spread(images: Sequence[Entry], limit: int) -> list[Entry]:
    """At most so many of them, evenly over all."""
    places = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int))
    return [images[place] for place in places]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_image(cfg: CfgNode, file: Path) -> Entry:
    """An image outside the data, as the detector is tested on it.

    Raises:
        UserError: the file can't be read.
    """
    image: Entry | None = CheckedMapper(cfg, is_train=False)({"file_name": str(file), "image_id": 0})
    assert image is not None  # as it may be in training
    return image


def batches(cfg: CfgNode, images: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Each image as the detector is tested on it, in a batch of its own, in the order given.

    Raises:
        UserError: an image can't be read.
    """
    mapper = CheckedMapper(cfg, is_train=False)
    loader = build_detection_test_loader(
        dataset=list(images), mapper=mapper, num_workers=min(cfg.DATALOADER.NUM_WORKERS, len(images))
    )
    return iter(SignalSafeLoader(loader))


def coco_results(image: Entry, found: Instances, split: EvaluationData) -> list[Entry]:
    """An image's detections in COCO's results format."""
    entries = instances_to_coco_json(found.to("cpu"), image["image_id"])
    return [{**entry, "category_id": split.category_ids[entry["category_id"]]} for entry in entries]


def fingerprint(run: TrainedRun, split: EvaluationData) -> dict[str, str]:
    """What an analysis is of: equal for equal weights, annotations, images and config, wherever they lie."""
    files = {"weights": run.weights, "config": run.folder / "config.yaml", "annotations": split.annotations}
    names = "\n".join(str(image["image_id"]) for image in split.images)
    digests = {what: file_digest(path) for what, path in files.items()}
    return {**digests, "images": hashlib.sha256(names.encode()).hexdigest()}
