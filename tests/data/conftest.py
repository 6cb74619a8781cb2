import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from se_detection import model_zoo

NAMES = ("mast", "buoy", "gull")


class DataSet:
    """A COCO-format data set on disk. Tests change `content` and call `write`."""

    def __init__(self, folder: Path, seed: int = 0, count: int = 12) -> None:
        self.json_file, self.images = folder / "set.json", folder / "images"
        self.images.mkdir(parents=True)
        self.content: dict[str, Any] = {
            "info": {"year": 2014},
            "images": [
                {"id": 100 + index, "file_name": f"{seed}_{index}.png", "width": 60, "height": 40}
                for index in range(count)
            ],
            "annotations": [
                {
                    "id": 1 + 3 * index + number,
                    "image_id": 100 + index,
                    "category_id": 1 + number,
                    "bbox": [2 + 15 * number, 5.5, 20, 18],
                    "area": 360,
                    "iscrowd": 0,
                }
                for index in range(count)
                for number in range(len(NAMES))
            ],
            "categories": [{"id": 1 + number, "name": name} for number, name in enumerate(NAMES)],
        }
        for index, image in enumerate(self.content["images"]):
            save_noise(self.images / image["file_name"], 60, 40, seed=1000 * seed + index)
        self.write()

    def write(self) -> None:
        self.json_file.write_text(json.dumps(self.content), encoding="utf-8")


@pytest.fixture
def data_set(tmp_path) -> DataSet:
    """A valid data set: twelve images, each with a box of each of three classes."""
    return DataSet(tmp_path / "set")


@pytest.fixture
def make_data_set(tmp_path) -> Callable[..., DataSet]:
    return lambda name, **options: DataSet(tmp_path / name, **options)


@pytest.fixture(scope="session")
def cfg():
    return model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x")


def save_noise(path: Path, width: int, height: int, seed: int = 0, **options: Any) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
