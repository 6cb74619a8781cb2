from copy import deepcopy

import numpy as np
import pytest
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.masks_and_keypoints import check_keypoints, check_masks

from ..conftest import assert_usable

POINTS = [5, 8, 2, 9, 9, 1, 0, 0, 0]


@pytest.fixture
def check_and_fix(data_set, cfg):
    """A function that writes the fixed file; it returns the number of findings by key, and the fixed content."""

    def check_and_fix():
        data_set.write()
        annotated = read_annotated_folder(data_set.json_file, data_set.images)
        images = decode_images(annotated)
        found = {item["key"]: item["count"] for item in check_health(annotated, images, [], cfg)["findings"]}
        fixed = fix_annotations(annotated, images)[0].content
        assert_usable(fixed, data_set.json_file, data_set.images, cfg)
        return found, fixed

    return check_and_fix


def rectangle(annotation):
    x, y, w, h = annotation["bbox"]
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def evaluate(data_set, kind, results):
    """AP by pycocotools, of results with these values."""
    truth = COCO(str(data_set.json_file))
    entries = [
        deepcopy(entry) | values | {"score": 1.0} for entry, values in zip(truth.anns.values(), results, strict=True)
    ]
    evaluation = COCOeval(truth, truth.loadRes(entries), kind)
    evaluation.params.kpt_oks_sigmas = np.full(3, 0.1)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_polygons_that_pycocotools_cannot_use(data_set, check_and_fix) -> None:
    """Exporters write a polygon without the list around it, or lines and points next to polygons."""
    annotations = data_set.content["annotations"]
    for annotation in annotations:
        annotation["segmentation"] = [rectangle(annotation)]
    whole = deepcopy(annotations)
    annotations[0]["segmentation"] = rectangle(annotations[0])
    annotations[1]["segmentation"] += [[0, 0, 50, 39], [1, 2], [0, 0, 9, 9, 0, 9, 9]]
    found, fixed = check_and_fix()
    assert found == {"annotations-wrong-segmentation": 1, "annotations-short-polygons": 1}
    assert fixed["annotations"] == whole
    check_masks(data_set.json_file, fixed, evaluated=True)
    results = [{"segmentation": masks.frPyObjects(entry["segmentation"], 40, 60)[0]} for entry in whole]
    assert evaluate(data_set, "segm", results) == pytest.approx(1)


def test_num_keypoints_is_the_number_of_labelled_keypoints(data_set, check_and_fix) -> None:
    annotations = data_set.content["annotations"]
    for category in data_set.content["categories"]:
        category["keypoints"] = ["nose", "tail", "fin"]
    for annotation in annotations:
        annotation |= {"keypoints": POINTS, "num_keypoints": 2}
    whole = deepcopy(annotations)
    del annotations[0]["num_keypoints"]
    # pycocotools ignores this object.
    annotations[1]["num_keypoints"] = 0
    found, fixed = check_and_fix()
    assert found == {"annotations-num-keypoints": 2}
    assert fixed["annotations"] == whole
    check_keypoints(data_set.json_file, fixed, evaluated=True)
    assert evaluate(data_set, "keypoints", [{"keypoints": POINTS}] * len(whole)) == pytest.approx(1)
    wrong = [{"keypoints": [1000, 1000, 2] * 3 if index == 1 else POINTS} for index in range(len(whole))]
    assert evaluate(data_set, "keypoints", wrong) < 1


def test_rotated_boxes_are_found(data_set, check_and_fix) -> None:
    for index, attributes in enumerate(({"rotation": 33.5}, {"rotation": 180.0}, {"rotation": "33"}, "33", None)):
        data_set.content["annotations"][index]["attributes"] = attributes
    assert check_and_fix()[0] == {"boxes-rotated": 1}
