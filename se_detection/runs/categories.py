"""The classes of a trained detector."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from ..config.defaults import classes_node
from ..data.coco_format import category_names, read_coco
from ..errors import UserError, counted
from .record import read_record
from .run_folder import CONFIG, RECORD, evaluation_advice


def run_categories(run: Path, cfg: CfgNode) -> dict[int, str]:
    """The class names of a run by category id, in the model's order.

    The ids are those of its data set if detectron2 knows it or its annotation file still exists; otherwise 1, 2, ...

    Raises:
        UserError: the names are unknown, or their number is not the model's.
    """
    record = read_record(run)
    names = record.get("classes", [])
    # The annotation file may have been edited since.
    fitting = (found for found in _dataset_categories(record, cfg) if not names or list(found.values()) == names)
    categories = next(fitting, dict(enumerate(names, 1)))
    if not categories:
        message = f"{run}: no {RECORD} with class names, as after detectron2's own tools; {evaluation_advice(run)}"
        raise UserError("run.no_classes", f"{message}; SEPredictor also takes class_names")
    if len(categories) != (number := cfg.MODEL[classes_node(cfg)].NUM_CLASSES):
        classes = counted(len(categories), "class", "classes")
        raise UserError(
            "run.other_classes", f"{run}: its record has {classes}, and {CONFIG} has {number}; restore one of them"
        )
    return categories


def config_categories(cfg: CfgNode) -> dict[int, str]:
    """The class names of a config's data sets by category id, in the model's order.

    Raises:
        UserError: none of the data sets is registered.
    """
    categories = next(_dataset_categories({}, cfg), {})
    if not categories:
        names = ", ".join((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)) or "none"
        message = f"the class names are unknown, because no data set of the config ({names}) is registered"
        raise UserError("run.no_classes", f"{message}; register one, or give class_names")
    return categories


def _dataset_categories(record: dict[str, Any], cfg: CfgNode) -> Iterator[dict[int, str]]:
    # An evaluation may have been on other data than the config's.
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, *record.get("data", {})):
        # The record first: another run's data may be registered under the same name.
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog else Metadata()
        for json_file in (record.get("data", {}).get(name, {}).get("json"), metadata.get("json_file")):
            with suppress(UserError):
                if json_file and Path(json_file).is_file():
                    yield category_names(json_file, read_coco(json_file))
        classes = metadata.get("thing_classes") or ()
        ids: dict[int, int] = metadata.get("thing_dataset_id_to_contiguous_id") or {
            id_: id_ - 1 for id_ in range(1, len(classes) + 1)
        }
        if classes:
            yield {id_: classes[ids[id_]] for id_ in sorted(ids, key=ids.__getitem__)}
