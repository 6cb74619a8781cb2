"""The splits of a study's data set."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from se_detection.data.coco_format import read_coco
from se_detection.data.sample import sample_coco
from se_detection.errors import UserError, counted
from se_detection.files import write_json

from .definition import DataSet


class Split(NamedTuple):
    """A COCO file and the folder of its images."""

    json_file: Path
    images: Path


def data_digest(data: DataSet, root: Path) -> str:
    """Hash of the annotations of a data set below `root`; the same on every machine.

    Raises:
        UserError: a file is missing.
    """
    digest = hashlib.sha256()
    for path in (root / data.train[0], root / data.val[0]):
        if not path.is_file():
            raise UserError("data.not_found", f"{path}: there is no such file; check --data and the study's DATA")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def make_splits(data: DataSet, root: Path, folder: Path) -> dict[str, Split]:
    """`train`, `tuning` and `val`; the first two are disjoint parts of the training data.

    Args:
        data: the data set.
        root: the folder that its paths are relative to.
        folder: for the annotation files of `train` and `tuning`.

    Raises:
        UserError: the training data have too few images, or can't be read.
    """
    train, tuning = folder / f"{data.name}-train.json", folder / f"{data.name}-tuning.json"
    source, images = root / data.train[0], root / data.train[1]
    if not train.is_file():
        total = len(read_coco(source)["images"])
        if total <= data.tuning_images:
            raise UserError(
                "study.too_few_images",
                f"{source} has {counted(total, 'image')}, and TUNING_IMAGES takes {data.tuning_images}; lower it",
            )
        folder.mkdir(parents=True, exist_ok=True)
        kept, rest = sample_coco(source, total - data.tuning_images)
        write_json(tuning, rest.content)
        write_json(train, kept.content)
    return {
        "train": Split(train, images),
        "tuning": Split(tuning, images),
        "val": Split(root / data.val[0], root / data.val[1]),
    }
