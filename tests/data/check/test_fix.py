import json
from copy import deepcopy

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image
from pycocotools.coco import COCO

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.coco_sets import check_coco

from ...helpers import raises
from ..conftest import assert_usable, save_noise


def fix(data_set, cfg):
    """The content of the corrected file, which must be usable, and the changes."""
    data_set.write()
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    before = repr(annotated.content)
    fixed, changes = fix_annotations(annotated, decode_images(annotated))
    assert repr(annotated.content) == before
    assert_usable(fixed.content, data_set.json_file.with_name("fixed.json"), data_set.images, cfg)
    return fixed.content, changes


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_valid_set_is_not_changed(data_set, cfg) -> None:
    fixed, changes = fix(data_set, cfg)
    assert fixed == data_set.content
    assert changes == {}


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
    fixed, changes = fix(data_set, cfg)
    entries = {entry["id"]: entry for entry in fixed["annotations"]}
    assert len(entries) == len(fixed["annotations"]) == 36 - 5
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
        "annotations: area set to the mask's, or without a mask to the box's": 1,
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


def test_bad_images_are_removed_with_their_annotations(data_set, cfg) -> None:
    images = data_set.content["images"]
    (data_set.images / images[0]["file_name"]).unlink()
    (data_set.images / images[1]["file_name"]).write_bytes(b"no image")
    images[2]["file_name"] = "../outside.png"
    images[3]["id"] = images[4]["id"]
    images.append(dict(images[5]))
    fixed, changes = fix(data_set, cfg)
    assert [image["id"] for image in fixed["images"]] == list(range(105, 112))
    assert {annotation["image_id"] for annotation in fixed["annotations"]} == set(range(105, 112))
    assert {what: len(found) for what, found in changes.items()} == {
        "images removed: not in the folder": 1,
        "images removed: they can't be decoded": 1,
        "images removed: no usable id or file_name": 1,
        "images removed: several share an id, so their annotations are ambiguous": 2,
        "images removed: duplicates of an earlier one": 1,
        "annotations removed: their image is not in the file, or was removed": 15,
    }


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
    fixed, changes = fix(data_set, cfg)
    pixels = np.asarray(detection_utils.read_image(data_set.images / "0_0.png", "RGB"))
    assert any("images" in what for what in changes)
    by_id = {image["id"]: image for image in fixed["images"]}
    assert (100 in by_id) == kept
    if kept:
        assert (by_id[100]["height"], by_id[100]["width"]) == pixels.shape[:2]
        assert [entry["bbox"] for entry in fixed["annotations"] if entry["image_id"] == 100] == boxes


def test_problems_that_cannot_be_fixed_are_reported(data_set, cfg) -> None:
    content = deepcopy(data_set.content)
    categories = content["categories"]
    elsewhere = [image | {"file_name": f"other_{image['file_name']}"} for image in content["images"]]
    corners = [entry | {"bbox": [24, 15.5, 40, 23.5]} for entry in content["annotations"]]
    # Both categories of a name are used.
    twice, both = [*categories, {"id": 4, "name": "gull"}], [{**content["annotations"][0], "category_id": 4}]
    both += content["annotations"][1:]
    for change, code, *named in (
        ({"categories": []}, "data.empty", "'categories'"),
        ({"categories": [*categories, {"id": 3, "name": "crab"}]}, "data.repeated_id", "categories[3] (id 3)", "--fix"),
        ({"categories": twice, "annotations": both}, "data.repeated_name", "'gull'"),
        ({"categories": [*categories, {"id": "x", "name": "crab"}]}, "data.bad_entry", "id 'x'"),
        ({"annotations": []}, "data.no_objects", "it has no annotations"),
        ({"images": elsewhere}, "data.no_objects", "images removed: not in the folder (12); annotations"),
        ({"annotations": corners}, "data.box_notation", "(x1, y1, x2, y2)"),
    ):
        data_set.content = {**content, **change}
        with raises(code, data_set.json_file, *named):
            fix(data_set, cfg)
    data_set.content = {**content, "categories": [*categories, categories[0]]}
    fixed, changes = fix(data_set, cfg)
    assert fixed == content
    assert list(changes.values()) == [["categories[3] (id 1)"]]


def test_other_keys_are_kept(data_set, cfg) -> None:
    data_set.content["annotations"][0] |= {"id": 0, "keypoints": [1, 2, 2], "num_keypoints": 1, "score": 0.5}
    data_set.content["images"][0] |= {"width": 61, "license": 3}
    data_set.content["licenses"] = [{"id": 3}]
    fixed, _ = fix(data_set, cfg)
    expected = deepcopy(data_set.content)
    expected["annotations"][0]["id"], expected["images"][0]["width"] = 37, 60
    assert fixed == expected


def test_numbers_as_text_or_decimals_are_converted(data_set, cfg) -> None:
    expected = deepcopy(data_set.content)
    for image in data_set.content["images"]:
        image |= {"id": str(image["id"]), "width": 60.0, "height": "40.0"}
    for annotation in data_set.content["annotations"]:
        annotation |= {"id": float(annotation["id"]), "image_id": f"0{annotation['image_id']}", "category_id": "1.0"}
        annotation |= {"bbox": list(map(str, annotation["bbox"])), "area": "360"}
    for category in data_set.content["categories"]:
        category["id"] = str(category["id"])
    for annotation in expected["annotations"]:
        annotation["category_id"] = 1
    fixed, changes = fix(data_set, cfg)
    assert fixed == expected
    assert {what: len(found) for what, found in changes.items()} == {
        **dict.fromkeys((f"images: {key!r} made a number" for key in ("id", "width", "height")), 12),
        **{f"annotations: {key!r} made a number": 36 for key in ("id", "image_id", "category_id", "bbox", "area")},
        "categories: 'id' made a number": 3,
    }


@pytest.mark.parametrize("used", [True, False])
def test_the_root_category_of_roboflow_is_removed(data_set, cfg, used) -> None:
    mast, *others = data_set.content["categories"]
    data_set.content["categories"] = [{"id": 0, "name": "mast", "supercategory": "none"}, mast, *others]
    if not used:
        mast["supercategory"] = "mast"
        del data_set.content["annotations"][::3]
    fixed, changes = fix(data_set, cfg)
    assert fixed["categories"] == [mast, *others]
    assert list(changes.values()) == [["categories[0] (id 0)"]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_removed(data_set, cfg, encoding) -> None:
    data_set.json_file.write_text(json.dumps(data_set.content), encoding=encoding)
    with pytest.raises((UnicodeDecodeError, json.JSONDecodeError)):
        COCO(data_set.json_file)
    with raises("data.encoding", data_set.json_file, encoding, "--fix"):
        check_coco(data_set.json_file, data_set.images)
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    decoded = decode_images(annotated)
    assert [each["key"] for each in check_health(annotated, decoded, [], cfg)["findings"]] == ["file-encoding"]
    fixed, changes = fix_annotations(annotated, decoded)
    assert (fixed.content, list(changes.values())) == (data_set.content, [[encoding]])
    assert check_health(fixed, decoded, [], cfg)["findings"] == []
