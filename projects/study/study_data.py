"""Where a study's data are, and what is made of them."""

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
class Data:
    """The images to pre-train on, and a detection set's two splits."""

    classification: Path
    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path

    def digest(self) -> str:
        """Of the annotations, and of how many images the classes to pre-train on have; the same on any machine.

        Raises:
            UserError: something is not there.
        """
        digest = hashlib.sha256()
        for path in (self.train_json, self.val_json):
            if not path.is_file():
                raise UserError(f"{path}: there is no such file")
            digest.update(path.read_bytes())
        root = find_image_folder(self.classification)
        counts = {str(item.relative_to(root)): len(os.listdir(item)) for item in root.glob("*/*") if item.is_dir()}
        digest.update(json.dumps(counts, sort_keys=True).encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class StudySplit:
    """A COCO file and its folder of images."""

    json_file: Path
    images: Path


def make_splits(study: Study, data: Data, folder: Path) -> dict[str, StudySplit]:
    """`train`, `tuning` and `val`: the first two are parts of the training data, and have no image in common.

    Args:
        folder: where their files go.

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
            f"{data.train_json} has {total} images; TRAIN_IMAGES and TUNING_IMAGES ask for "
            f"{count} and {study.tuning_images}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    both = folder / "both.json"
    write_json(both, sample_coco(data.train_json, count + study.tuning_images)[0].content)
    chosen, rest = sample_coco(both, count)
    write_json(train, chosen.content)
    write_json(tuning, rest.content)
    both.unlink()
    return splits
