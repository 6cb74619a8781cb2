"""Damaged annotations and results give a one-line error, or the same AP as pycocotools."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from se_detection.comparison.compare import compare
from se_detection.comparison.matching import match_boxes
from se_detection.data.coco_files import EVALUATED, data_difference, load_annotations, load_results, silenced

from ..fuzzing import Tally, damaged, examples

pytestmark = pytest.mark.slow

BOX = {"category_id": 3, "area": 400.0, "iscrowd": 0}
ANNOTATIONS = {
    "images": [{"id": 5, "file_name": "5.png", "width": 80, "height": 60}, {"id": 6, "file_name": "sub/6.png"}],
    "annotations": [
        {"id": 1, "image_id": 5, "bbox": [2, 5.5, 20, 20], **BOX},
        {"id": 2, "image_id": 5, "bbox": [30, 5.5, 40, 50], **BOX, "category_id": 7, "area": 2000},
        {"id": 3, "image_id": 6, "bbox": [9, 9, 20, 20], **BOX, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "plate"}],
}
RESULTS = [
    {"image_id": 5, "category_id": 3, "bbox": [2.5, 5, 20, 21.5], "score": 0.9},
    {"image_id": 5, "category_id": 7, "bbox": [31, 5, 30, 41.5], "score": 0.8},
    {"image_id": 6, "category_id": 3, "bbox": [2.5, 5, 10, 11.5], "score": 0.7},
]


@pytest.fixture
def tally(request) -> Iterator[Tally]:
    found = Tally(request.param)
    yield found
    print(f"\n{found}")
    # With few examples, all may have the same outcome.
    assert sum(found.counts.values()) < 20 or (found.counts["refused"] and found.counts["read"])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("tally", ["COCO annotations, evaluation"], indirect=True)
@examples(30)
@given(data=damaged(ANNOTATIONS))
def test_annotations(tally, reference, tmp_path, data) -> None:
    json_file = write(tmp_path / "val.json", data)
    coco = tally.refused(load_annotations, json_file)
    if coco is None:
        return
    content = json.loads(data)
    assert len(coco.anns) == len(content["annotations"])
    assert sum(map(len, coco.imgToAnns.values())) == len(content["annotations"])
    found = [{key: item[key] for key in ("image_id", "category_id", "bbox")} for item in content["annotations"]]
    results = [{**item, "score": 1 - 0.01 * number} for number, item in enumerate(found)]
    assert load_results(results, coco, "results") == results
    ours = compare(results, [], json_file, n_bootstrap=100).baseline["AP"]
    # Other fields may be nested too deeply to be copied; they don't matter here.
    known = {
        "images": [{"id": image["id"]} for image in content["images"]],
        "annotations": [{key: item[key] for key in ("id", *EVALUATED)} for item in content["annotations"]],
        "categories": [{"id": category["id"]} for category in content["categories"]],
    }
    with silenced():
        theirs = 100 * reference(known, results)[0] if results else np.nan
    assert (np.nan if ours is None else ours) == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    data_difference(json_file, write(tmp_path / "other.json", json.dumps(ANNOTATIONS).encode()))


@pytest.mark.parametrize("tally", ["COCO results"], indirect=True)
@examples(30)
@given(data=damaged(RESULTS))
def test_results(tally, reference, tmp_path, data) -> None:
    coco = load_annotations(ANNOTATIONS)
    results = tally.refused(load_results, write(tmp_path / "results.json", data), coco, "results")
    if results is None:
        return
    assert len(results) == len(json.loads(data))
    assert sum(len(matched.cocoDt.anns) for matched in match_boxes(coco, results)) == len(results)
    if results:
        ours = compare(results, [], ANNOTATIONS, n_bootstrap=100).baseline["AP"]
        with silenced():
            theirs = 100 * reference(ANNOTATIONS, results)[0]
        assert ours == pytest.approx(theirs, abs=1e-6)
