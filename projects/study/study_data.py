"""The data of a study, and its splits."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from se_detection.data.coco_format import read_coco
from se_detection.data.sample import sample_coco
from se_detection.errors import UserError, counted
from se_detection.files import write_json
from se_detection.pretrain.image_folder import find_image_folder

from .definition import Study


class StudySplit(NamedTuple):
    """A COCO file and the folder of its images."""

    json_file: Path
    images: Path


@dataclass(frozen=True)
class StudyData:
    """The images for pre-training, and the two splits of a detection set."""

    classification: Path
    train: StudySplit
    val: StudySplit

    def digest(self) -> str:
        """Hash of the annotations and of the pre-training set's image counts; the same on every machine.

        Raises:
            UserError: a file or folder is missing.
        """
        digest = hashlib.sha256()
        for path in (self.train.json_file, self.val.json_file):
            if not path.is_file():
                raise UserError("data.not_found", f"{path}: there is no such file; check its path")
            digest.update(path.read_bytes())
        root = find_image_folder(self.classification)
        counts = {str(item.relative_to(root)): len(os.listdir(item)) for item in root.glob("*/*") if item.is_dir()}
        digest.update(json.dumps(counts, sort_keys=True).encode())
        return digest.hexdigest()[:12]


def make_splits(study: Study, data: StudyData, folder: Path) -> dict[str, StudySplit]:
    """`train`, `tuning` and `val`; the first two are disjoint parts of the training data.

    Args:
        folder: for the annotation files.

    Raises:
        UserError: the training data have too few images, or can't be read.
    """
    train, tuning = folder / "train.json", folder / "tuning.json"
    if not train.is_file():
        total = len(read_coco(data.train.json_file)["images"])
        count = study.train_images or total - study.tuning_images
        if count + study.tuning_images > total or count < 1:
            raise UserError(
                "study.too_few_images",
                f"{data.train.json_file} has {counted(total, 'image')}, but TRAIN_IMAGES and TUNING_IMAGES need "
                f"{count} and {study.tuning_images}; use more images or lower these values",
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(tuning, sample_coco(data.train.json_file, count + study.tuning_images)[0].content)
        chosen, rest = sample_coco(tuning, count)
        write_json(tuning, rest.content)
        write_json(train, chosen.content)
    images = data.train.images
    return {"train": StudySplit(train, images), "tuning": StudySplit(tuning, images), "val": data.val}
