import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection import model_zoo
from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.coco_sets import check_coco
from se_detection.files import write_json

from ..fuzzing import Tally

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
    """A small detector with the anchors of most configs."""
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x")
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    return cfg


@pytest.fixture
def tally(request) -> Iterator[Tally]:
    """Counts the inputs that are refused, and the others; there must be some of both."""
    found = Tally(request.param)
    yield found
    print(f"\n{found}")
    assert found.counts["refused"]
    assert found.counts["read"]


def save_noise(path: Path, width: int, height: int, seed: int = 0, **options: Any) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def assert_usable(content: dict[str, Any], json_file: Path, images: Path, cfg: CfgNode) -> None:
    """A fixed file is accepted by both checks, pycocotools and detectron2, and not fixed again."""
    write_json(json_file, content)
    assert check_coco(json_file, images)
    again = read_annotated_folder(json_file, images)
    assert check_health(again, decode_images(again), [], cfg)["errors"] == 0
    twice, changes = fix_annotations(again, decode_images(again))
    assert (twice.content, changes) == (again.content, {})
    truth = COCO(str(json_file))
    found = [{**entry, "score": 1.0} for entry in again.content["annotations"] if not entry["iscrowd"]]
    evaluation = COCOeval(truth, truth.loadRes(deepcopy(found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # A detector that finds every box has a recall of 1.
    assert evaluation.stats[8] == pytest.approx(1)
    for record in load_coco_json(str(json_file), str(images)):
        detection_utils.check_image_size(record, detection_utils.read_image(record["file_name"], "BGR"))
