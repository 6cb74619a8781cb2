"""Damaged annotation files are refused in one line, or read as pycocotools and detectron2 read them."""

import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from se_detection import UserError
from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.check.health_report import changes_text, health_tables
from se_detection.data.coco_sets import check_annotations, check_coco, find_bad_images
from se_detection.data.minival import read_image_ids
from se_detection.data.sample import sample_coco
from se_detection.files import write_json
from se_detection.runs.bad_images import read_bad_images
from se_detection.runs.run_folder import BAD_IMAGES

from ..fuzzing import Tally, damaged, examples
from .conftest import assert_usable, save_noise

pytestmark = pytest.mark.slow
BOX = {"category_id": 1, "area": 360, "iscrowd": 0}
POLYGON = [[2, 5, 22, 5, 22, 23]]
CONTENT = {
    "info": {"year": 2014},
    "images": [
        {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
        {"id": 9, "file_name": "sub/b.jpg", "width": 40, "height": 60},
        {"id": 8, "file_name": "a.png", "width": 60, "height": 40},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "bbox": [2, 5.5, 20, 18], "segmentation": POLYGON, **BOX},
        {"id": 2, "image_id": 9, "bbox": [1, 1, 20, 18], **BOX, "category_id": 40, "keypoints": [3, 4, 2]},
        {"id": 3, "image_id": 9, "bbox": [9, 9, 20, 18], **BOX, "segmentation": [], "ignore": 0},
        {
            **{"id": 4, "image_id": 8, "bbox": [0, 0, 60, 40], **BOX, "iscrowd": 1},
            "segmentation": {"counts": [0, 2400], "size": [40, 60], "caseid": -1},
        },
    ],
    "categories": [{"id": 1, "name": "mast"}, {"id": 40, "name": "buoy"}],
}


WORDS = ["139", "val/000000000139.jpg", "[", "]", ",", "7" * 30, "1" * 100_000 + "x", "-3", '"5"']


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    save_noise(folder / "a.png", 60, 40)
    save_noise(folder / "sub" / "b.jpg", 40, 60)
    return folder


def index(json_file: Path) -> COCO:
    with redirect_stdout(None):
        return COCO(json_file)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "set.json"
    path.write_bytes(data)
    return path


def detections(mapper: DatasetMapper, record: dict) -> np.ndarray:
    return mapper(record)["instances"].gt_boxes.tensor.numpy()


@pytest.mark.parametrize("tally", ["COCO JSON, check"], indirect=True)
@examples(150)
@given(data=damaged(CONTENT), evaluated=st.booleans())
def test_accepted_files_are_read_completely(tally, images, tmp_path, data, evaluated) -> None:
    json_file = write(tmp_path, data)
    names = tally.refused(check_coco, json_file, images, evaluated=evaluated)
    if names is None:
        return
    coco = index(json_file)
    assert [coco.cats[key]["name"] for key in sorted(coco.cats)] == names
    content = json.loads(data)
    assert len(coco.anns) == len(content["annotations"])
    records = load_coco_json(str(json_file), str(images))
    assert sum(len(record["annotations"]) for record in records) == len(content["annotations"])
    assert len(records) == len(content["images"])
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    mapper = DatasetMapper(cfg, is_train=True)
    for record in records:
        assert Path(record["file_name"]).resolve().is_relative_to(images)
        assert np.isfinite(detections(mapper, record)).all()
    if evaluated:
        assert all(coco.anns[key]["area"] >= 0 for key in coco.anns)


@pytest.mark.parametrize("tally", ["COCO JSON, --skip-bad-images"], indirect=True)
@examples(80)
@given(data=damaged(CONTENT))
def test_bad_images_are_those_that_the_check_refuses(tally, images, tmp_path, data) -> None:
    json_file = write(tmp_path, data)

    def find():
        return find_bad_images(json_file, check_annotations(json_file, evaluated=False), images)

    bad = tally.refused(find)
    if bad is None or bad:
        with pytest.raises(UserError):
            check_coco(json_file, images, evaluated=False)
    else:
        assert check_coco(json_file, images, evaluated=False)


@pytest.mark.parametrize("tally", ["COCO JSON, health and fix"], indirect=True)
@examples(30)
@given(data=damaged(CONTENT))
def test_health_and_fix_accept_any_file(tally, images, cfg, tmp_path, data) -> None:
    json_file = write(tmp_path, data)
    annotated = tally.refused(read_annotated_folder, json_file, images)
    if annotated is None:
        return
    before = repr(annotated.content)
    decoded = decode_images(annotated)
    health = check_health(annotated, decoded, [annotated], cfg)
    json.dumps(health, allow_nan=False).encode()
    assert "\x1b" not in health_tables(health).encode().decode()
    if not [
        finding
        for finding in health["findings"]
        if finding["level"] == "error" and not finding["key"].startswith("over")
    ]:
        assert check_coco(json_file, images)
    done = Tally("fix").refused(fix_annotations, annotated, decoded)
    assert repr(annotated.content) == before
    if done is None:
        return
    fixed, changes = done
    changes_text(changes).encode()
    assert_usable(fixed.content, tmp_path / "fixed.json", images, cfg)
    kept = [entry for entry in fixed.content["annotations"] if entry in annotated.content["annotations"]]
    assert len(kept) + sum(map(len, changes.values())) >= len(annotated.content["annotations"])


@pytest.mark.parametrize("tally", ["COCO JSON, sample"], indirect=True)
@examples(80)
@given(data=damaged(CONTENT), count=st.integers(-1, 4))
def test_sample_accepts_any_file(tally, tmp_path, data, count) -> None:
    json_file = write(tmp_path, data)
    parts = tally.refused(sample_coco, json_file, count)
    if parts is None:
        return
    # pycocotools reads UTF-8 only.
    write_json(json_file, json.loads(data))
    whole = index(json_file)
    for name, part, size in zip(("sample", "rest"), parts, (count, len(whole.imgs) - count), strict=True):
        write_json(tmp_path / f"{name}.json", part.content)
        found = index(tmp_path / f"{name}.json")
        assert len(found.imgs) == size
        assert found.anns == {key: whole.anns[key] for key in whole.anns if whole.anns[key]["image_id"] in found.imgs}


@pytest.mark.parametrize("tally", ["image ids of minival"], indirect=True)
@examples(100)
@given(data=damaged(CONTENT) | st.binary(max_size=60) | st.lists(st.sampled_from(WORDS)).map("\n".join).map(str.encode))
def test_image_ids_are_read_from_any_file(tally, tmp_path, data) -> None:
    path = write(tmp_path, data)
    ids = tally.refused(read_image_ids, path)
    assert ids is None or all(type(id_) is int for id_ in ids)


@pytest.mark.parametrize("tally", ["bad_images.json"], indirect=True)
@examples(80)
@given(
    data=damaged(
        {
            "count": 1,
            "images": [{"file_name": "/a.png", "width": 4, "height": 5, "reason": "is not there", "iteration": None}],
        }
    )
)
def test_damaged_lists_of_bad_images_are_refused(tally, tmp_path, data) -> None:
    (tmp_path / BAD_IMAGES).write_bytes(data)
    tally.refused(read_bad_images, tmp_path)
