import contextlib
import io
from copy import deepcopy

import numpy as np
import pytest
from detectron2.data import detection_utils
from detectron2.data.datasets import load_coco_json
from hypothesis import given, settings
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.coco_sets import check_coco
from se_detection.errors import UserError
from se_detection.files import write_json

from ..conftest import DataSet, save_noise
from .breakage import break_content, breakages


def fix(data_set):
    """The fixed annotations and the changes; checks that the input is not modified."""
    data_set.write()
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    before = repr(annotated.content)
    fixed, changes = fix_annotations(annotated, decode_images(annotated))
    assert repr(annotated.content) == before
    return fixed, {change.what: list(change.entries) for change in changes}


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_valid_set_is_not_changed(data_set) -> None:
    fixed, changes = fix(data_set)
    assert fixed.content == data_set.content
    assert changes == {}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A valid set, in a folder that also has an image rotated by EXIF and a broken image."""
    data_set = DataSet(tmp_path_factory.mktemp("damaged") / "set", count=4)
    (data_set.images / "sub").mkdir()
    save_noise(data_set.images / "sub" / "turned.jpg", 60, 40, exif=turned())
    (data_set.images / "broken.jpg").write_bytes((data_set.images / "sub" / "turned.jpg").read_bytes()[:900])
    return data_set


@settings(max_examples=80, deadline=None)
@given(breakages())
def test_damage_is_fixed_or_reported(damaged, cfg, steps) -> None:
    whole = deepcopy(damaged.content)
    break_content(damaged.content, steps)
    broken = damaged.content
    problem = None
    try:
        fixed, changes = fix(damaged)
    except UserError as error:
        problem = str(error)
    finally:
        damaged.content = whole
    if problem is not None:
        assert "\n" not in problem
        assert str(damaged.json_file) in problem
        # Only bad categories, or a file with nothing left, can't be fixed.
        damaged_kinds = {kind for _, kind, *_ in steps}
        assert "categories" in damaged_kinds or "nothing to train on would be left" in problem
        assert damaged_kinds != {"annotations"} or any(action == "empty" for action, *_ in steps)
        return
    assert_usable(fixed, damaged, cfg)
    # Undamaged annotations are kept if their image and category are.
    kept = {kind: {entry["id"] for entry in fixed.content[kind]} for kind in ("images", "categories")}
    for entry in whole["annotations"]:
        is_whole = broken["annotations"].count(entry) == 1
        if is_whole and entry["image_id"] in kept["images"] and entry["category_id"] in kept["categories"]:
            shared = sum(isinstance(other, dict) and other.get("id") == entry["id"] for other in broken["annotations"])
            found = [other for other in fixed.content["annotations"] if other | {"id": entry["id"]} == entry]
            assert found
            assert entry in found or shared > 1
    if not any(kind == "images" for _, kind, *_ in steps):
        assert fixed.content["images"] == whole["images"]
    assert bool(changes) == (fixed.content != broken)


def assert_usable(fixed, data_set, cfg) -> None:
    """The quick check, the health check, pycocotools and detectron2's loader all accept it."""
    path = data_set.json_file.with_name("fixed.json")
    write_json(path, fixed.content)
    assert check_coco(path, data_set.images)
    again = read_annotated_folder(path, data_set.images)
    assert check_health(again, decode_images(again), [], cfg).count("error") == 0
    twice, changes = fix_annotations(again, decode_images(again))
    assert changes == []
    assert twice.content == again.content
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        found = [{**entry, "score": 1.0} for entry in again.content["annotations"] if not entry["iscrowd"]]
        evaluation = COCOeval(truth, truth.loadRes(deepcopy(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # A detector that finds every box has a recall of 1.
    assert evaluation.stats[8] == pytest.approx(1)
    for record in load_coco_json(str(path), str(data_set.images)):
        pixels = detection_utils.read_image(record["file_name"], "BGR")
        detection_utils.check_image_size(record, pixels)


def test_each_kind_of_damage_is_fixed(data_set, cfg) -> None:
    annotations = data_set.content["annotations"]
    annotations[0]["id"] = 0
    annotations[1]["id"] = annotations[2]["id"]
    annotations[3]["bbox"] = [-5, 30, 20, 20]
    annotations[4]["bbox"] = [5, 5, 0, 3]
    annotations[5]["bbox"] = [60, 5, 9, 9]
    del annotations[6]["area"], annotations[7]["iscrowd"]
    annotations[8]["image_id"] = 4711
    annotations[9]["category_id"] = 4711
    annotations[10]["ignore"] = 1
    annotations[11]["ignore"] = None
    annotations[12]["segmentation"] = [1, 2, 3]
    annotations[13]["iscrowd"] = "1"
    annotations[14]["bbox"] = [1, 2, 3]
    fixed, changes = fix(data_set)
    entries = {entry["id"]: entry for entry in fixed.content["annotations"]}
    assert len(entries) == len(fixed.content["annotations"]) == 36 - 5
    assert entries[37] == annotations[0] | {"id": 37}
    assert entries[3] == annotations[1]
    assert entries[38] == annotations[2] | {"id": 38}
    assert entries[4] == annotations[3] | {"bbox": [0, 30, 15, 10], "area": 150}
    assert entries[7]["area"] == 360
    assert entries[8]["iscrowd"] == 0
    assert entries[11]["iscrowd"] == 1
    assert entries[12]["iscrowd"] == 0
    assert "segmentation" not in entries[13]
    assert entries[14]["iscrowd"] == 1
    assert {what: len(found) for what, found in changes.items()} == {
        "annotations: a new id": 2,
        "annotations: the box clipped to the image": 1,
        "annotations removed: a box without width or height": 1,
        "annotations removed: a box outside the image": 1,
        "annotations: area set to the box's": 1,
        "annotations: iscrowd set to 0": 1,
        "annotations removed: their image is not in the file, or was removed": 1,
        "annotations removed: their category is not in the file": 1,
        "annotations: ignored ones made crowds, which detectron2 neither trains on nor counts": 1,
        "annotations: a meaningless 'ignore' removed": 1,
        "annotations: 'segmentation' removed; it must be polygons of at least three points, or a run-length code": 1,
        "annotations: iscrowd set to 1": 1,
        "annotations removed: no usable image_id, category_id or bbox": 1,
    }
    assert changes["annotations: a new id"] == [
        "annotations[0] (id 0) is now 37",
        "annotations[2] (id 3) is now 38",
    ]
    assert_usable(fixed, data_set, cfg)


def test_bad_images_are_removed_with_their_annotations(data_set, cfg) -> None:
    images = data_set.content["images"]
    (data_set.images / images[0]["file_name"]).unlink()
    (data_set.images / images[1]["file_name"]).write_bytes(b"no image")
    images[2]["file_name"] = "../outside.png"
    images[3]["id"] = images[4]["id"]
    images.append(dict(images[5]))
    fixed, changes = fix(data_set)
    assert [image["id"] for image in fixed.content["images"]] == list(range(105, 112))
    assert {annotation["image_id"] for annotation in fixed.content["annotations"]} == set(range(105, 112))
    assert {what: len(found) for what, found in changes.items()} == {
        "images removed: not in the folder": 1,
        "images removed: they can't be decoded": 1,
        "images removed: no usable id or file_name": 1,
        "images removed: several share an id, so their annotations are ambiguous": 2,
        "images removed: duplicates of an earlier one": 1,
        "annotations removed: their image is not in the file, or was removed": 15,
    }
    assert_usable(fixed, data_set, cfg)


@pytest.mark.parametrize(
    ("file", "stated", "boxes", "kept"),
    [
        # The boxes fit the decoded size.
        ({"width": 60, "height": 40}, (61, 40), [[1, 1, 20, 30]], True),
        ({"width": 60, "height": 40}, (40, 60), [[1, 1, 20, 30]], True),
        ({"width": 60, "height": 40}, (0, 40), [[1, 1, 20, 30]], True),
        ({"width": 60, "height": 40}, (120, 80), [], True),
        # The boxes are, or may be, those of an image of another size.
        ({"width": 60, "height": 40}, (120, 80), [[1, 1, 100, 70]], False),
        ({"width": 60, "height": 40}, (120, 80), [[1, 1, 20, 30]], False),
        ({"width": 60, "height": 40}, (30, 20), [[1, 1, 20, 10]], False),
        # EXIF rotates 60×40 to 40×60: boxes that fit only one size show which one they were made for.
        ({"width": 60, "height": 40, "exif": True}, (60, 40), [[1, 1, 30, 50]], True),
        ({"width": 60, "height": 40, "exif": True}, (60, 40), [[1, 1, 50, 30]], False),
        ({"width": 60, "height": 40, "exif": True}, (60, 40), [[1, 1, 20, 20]], False),
        ({"width": 60, "height": 40, "exif": True}, (60, 40), [], True),
    ],
)
def test_a_wrong_size_is_corrected_if_the_boxes_fit(data_set, cfg, file, stated, boxes, kept) -> None:
    options = {"exif": turned()} if file.pop("exif", False) else {}
    save_noise(data_set.images / "0_0.png", **file, **options)
    image, annotation = data_set.content["images"][0], data_set.content["annotations"][0]
    image["width"], image["height"] = stated
    data_set.content["annotations"][:3] = [annotation | {"bbox": box} for box in boxes]
    fixed, changes = fix(data_set)
    pixels = np.asarray(detection_utils.read_image(data_set.images / "0_0.png", "RGB"))
    assert any("images" in what for what in changes)
    by_id = {image["id"]: image for image in fixed.content["images"]}
    assert (100 in by_id) == kept
    if kept:
        assert (by_id[100]["height"], by_id[100]["width"]) == pixels.shape[:2]
        assert [entry["bbox"] for entry in fixed.content["annotations"] if entry["image_id"] == 100] == boxes
    assert_usable(fixed, data_set, cfg)


def refused(data_set):
    with pytest.raises(UserError) as caught:
        fix(data_set)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_problems_that_cannot_be_fixed_are_reported(data_set) -> None:
    content = deepcopy(data_set.content)
    for categories, expected in [
        ([], "'categories' is empty"),
        ([*content["categories"], {"id": 3, "name": "crab"}], "categories[3] (id 3)"),
        ([*content["categories"], {"id": 4, "name": "gull"}], "'gull'"),
        ([*content["categories"], {"id": "4", "name": "crab"}], "id '4'"),
    ]:
        data_set.content = {**content, "categories": categories}
        assert expected in refused(data_set)
    data_set.content = {**content, "categories": [*content["categories"], content["categories"][0]]}
    fixed, changes = fix(data_set)
    assert fixed.content == content
    assert list(changes.values()) == [["categories[3] (id 1)"]]
    data_set.content = {**content, "annotations": []}
    assert "nothing to train on would be left (it has no annotations)" in refused(data_set)
    data_set.content = content
    for image in content["images"]:
        image["file_name"] = f"elsewhere/{image['file_name']}"
    assert "nothing to train on would be left (images removed: not in the folder (12); annotations" in refused(data_set)


def test_corners_are_not_clipped(data_set) -> None:
    for annotation in data_set.content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x + 22, y + 10, x + 22 + width - 16, y + height]
    assert "look like (x1, y1, x2, y2)" in refused(data_set)


def test_other_keys_are_kept(data_set) -> None:
    data_set.content["annotations"][0] |= {"id": 0, "keypoints": [1, 2, 2], "score": 0.5}
    data_set.content["images"][0] |= {"width": 61, "license": 3}
    data_set.content["licenses"] = [{"id": 3}]
    fixed, _ = fix(data_set)
    assert fixed.content["licenses"] == [{"id": 3}]
    assert fixed.content["info"] == {"year": 2014}
    assert fixed.content["images"][0]["license"] == 3
    assert fixed.content["annotations"][0]["keypoints"] == [1, 2, 2]
    assert fixed.content["annotations"][0]["score"] == 0.5
