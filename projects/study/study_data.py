"""The data of a study, and its splits."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from se_detection.data.coco_format import read_coco
from se_detection.data.sample import sample_coco
from se_detection.errors import UserError
from se_detection.files import write_json
from se_detection.pretrain.image_folder import find_image_folder

from .definition import Study


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """The images for pre-training, and the two splits of a detection set."""

    classification: Path
    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path

    def digest(self) -> str:
        """Hash of the annotations and of the pre-training set's image counts; the same on every machine.

        Raises:
            UserError: a file or folder is missing.
        """
        digest = hashlib.sha256()
        for path in (self.train_json, self.val_json):
            if not path.is_file():
                raise UserError(f"{path}: no such file")
            digest.update(path.read_bytes())
        root = find_image_folder(self.classification)
        counts = {str(item.relative_to(root)): len(os.listdir(item)) for item in root.glob("*/*") if item.is_dir()}
        digest.update(json.dumps(counts, sort_keys=True).encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class StudySplit:
    """A COCO file and the folder of its images."""

    json_file: Path
    images: Path


def make_splits(study: Study, data: StudyData, folder: Path) -> dict[str, StudySplit]:
    """`train`, `tuning` and `val`; the first two are disjoint parts of the training data.

    Args:
        folder: for the annotation files.

    Raises:
        UserError: the training data have too few images, or can't be read.
    """
    train, tuning = folder / "train.json", folder / "tuning.json"
    splits = {
        "train": StudySplit(train, data.train_images),
        "tuning": StudySplit(tuning, data.train_images),
        "val": StudySplit(data.val_json, data.val_images),
    }
    if train.is_file() and tuning.is_file():
        return splits
    total = len(read_coco(data.train_json)["images"])
    count = study.train_images or total - study.tuning_images
    if count + study.tuning_images > total or count < 1:
        raise UserError(
            f"{data.train_json} has {total} images, but TRAIN_IMAGES and TUNING_IMAGES need {count} and "
            f"{study.tuning_images}; use more images or lower these values"
        )
    folder.mkdir(parents=True, exist_ok=True)
    both = folder / "both.json"
    write_json(both, sample_coco(data.train_json, count + study.tuning_images)[0].content)
    chosen, rest = sample_coco(both, count)
    write_json(train, chosen.content)
    write_json(tuning, rest.content)
    both.unlink()
    return splits
