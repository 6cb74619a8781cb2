"""Masks and keypoints that can't be used for training, and their error messages."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from se_detection.engine.trainer import Trainer

from ..helpers import raises
from .custom_data import KEYPOINTS, SIGMAS, changed, flags, load, use_rle
from .shapes import draw

pytestmark = pytest.mark.usefixtures("catalogs")


def without(key: str):
    return lambda content: content["annotations"][1].pop(key)


def rename_keypoint(content) -> None:
    content["categories"][0]["keypoints"] = ["top", "right_wing", "bottom", "left_fin"]


def add_category(content) -> None:
    content["categories"].append({"id": 20, "name": "fish", "keypoints": ["nose"]})


def remove_one_point(content) -> None:
    del content["annotations"][2]["keypoints"][9:]


def swap_rle_size(content) -> None:
    use_rle(content)
    content["annotations"][3]["segmentation"]["size"].reverse()


MASKS, KEYPOINT_RCNN = "mask_rcnn_fpn", "keypoint_rcnn"
# The detector, a change of the data, overrides, the error's code, and what it names.
REFUSED = {
    "no mask": (MASKS, without("segmentation"), {}, "data.no_masks", ["annotation 2", "MODEL.MASK_ON"]),
    "polygon of two points": (
        MASKS,
        lambda content: content["annotations"][0]["segmentation"].append([1, 1, 5, 5]),
        {},
        "data.no_masks",
        ["annotation 1", "three points"],
    ),
    "RLE of another size": (MASKS, swap_rle_size, {}, "data.no_masks", ["annotation 4", [128, 96], [96, 128]]),
    "RLE as polygons": (MASKS, use_rle, {"INPUT.MASK_FORMAT": "polygon"}, "config.contradicts_data", ["INPUT.MASK_F"]),
    "no keypoints": (
        KEYPOINT_RCNN,
        without("keypoints"),
        {},
        "data.no_keypoints",
        ["annotation 2", "MODEL.KEYPOINT_ON"],
    ),
    "few keypoints": (KEYPOINT_RCNN, remove_one_point, {}, "data.no_keypoints", ["annotation 3", "9 numbers", 12]),
    "no count": (KEYPOINT_RCNN, without("num_keypoints"), {}, "data.no_keypoints", ["annotation 2", "'num_keypoints'"]),
    "no names": (
        KEYPOINT_RCNN,
        lambda content: content["categories"][0].pop("keypoints"),
        {},
        "data.keypoint_names",
        ["category 10 'kite'"],
    ),
    "repeated name": (
        KEYPOINT_RCNN,
        lambda content: content["categories"][0].update(keypoints=["top", "top", "bottom", "fin"]),
        {},
        "data.keypoint_names",
        ["category 10 'kite'"],
    ),
    "other names": (KEYPOINT_RCNN, add_category, {}, "data.keypoint_names", ["category 20 'fish'"]),
    "no other side": (
        KEYPOINT_RCNN,
        rename_keypoint,
        {"TEST.KEYPOINT_OKS_SIGMAS": SIGMAS},
        "data.unpaired_keypoint",
        ["'right_wing'", "FLIP_MAP"],
    ),
    "wrong pair": (
        KEYPOINT_RCNN,
        None,
        {"INPUT.KEYPOINT_FLIP_MAP": [("top", "tip")], "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS},
        "config.keypoint_flip_map",
        ["'tip'"],
    ),
    "no sigmas": (KEYPOINT_RCNN, None, {}, "config.keypoint_sigmas", ["TEST.KEYPOINT_OKS_SIGMAS", 4]),
    "number of keypoints": (
        KEYPOINT_RCNN,
        None,
        {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 5},
        "config.contradicts_data",
        ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 5],
    ),
    "no panoptic data": ("panoptic_fpn", None, {}, "data.no_stuff", ["register_coco_panoptic_separated"]),
    "augmented keypoints": (
        KEYPOINT_RCNN,
        None,
        {"TEST.AUG.ENABLED": True, "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS},
        "config.no_augmentation",
        ["GeneralizedRCNN with keypoints"],
    ),
    "augmented retinanet": ("retinanet", None, {"TEST.AUG.ENABLED": True}, "config.no_augmentation", ["RetinaNet"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_in_data_are_found_before_training(data, case, tmp_path) -> None:
    name, change, overrides, code, named = REFUSED[case]
    source = "kites" if name == KEYPOINT_RCNN else "things"
    wrong = changed(vars(data)[source], tmp_path / "wrong.json", change or (lambda content: None))
    with raises(code, *named):
        load(name, flags(wrong, data.images[source]), tmp_path / "run", overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "key"), [(MASKS, "segmentation"), (KEYPOINT_RCNN, "keypoints")])
def test_data_registered_in_python_is_checked_before_training(name, key, tmp_path) -> None:
    image = draw(0)
    height, width = image.semantic.shape
    entries = [
        {**{k: v for k, v in item.items() if k != key}, "category_id": 0, "bbox_mode": BoxMode.XYWH_ABS}
        for item in image.annotations
    ]
    # With visible keypoints, because detectron2 skips images without any.
    entries.append({**image.annotations[0], "category_id": 0, "iscrowd": 1})
    record = {"file_name": "a.png", "image_id": 1, "height": height, "width": width, "annotations": entries}
    DatasetCatalog.register("drawn", lambda: [record])
    MetadataCatalog.get("drawn").set(
        thing_classes=["kite"], evaluator_type="coco", keypoint_names=KEYPOINTS, keypoint_flip_map=[]
    )
    values = {
        "DATASETS.TRAIN": ("drawn",),
        "DATASETS.TEST": ("drawn",),
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 4,
        "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS,
    }
    cfg = load(name, [], tmp_path, values)
    with raises("data.no_masks" if name == MASKS else "data.no_keypoints", f"objects without {key!r} in a.png: 2 of 2"):
        Trainer.build_train_loader(cfg)


def test_files_must_have_the_same_keypoints(data, tmp_path) -> None:
    other = changed(
        data.kites, tmp_path / "other.json", lambda content: content["categories"][0]["keypoints"].reverse()
    )
    with raises("data.other_keypoints", other, data.kites):
        load(KEYPOINT_RCNN, flags(data.kites, data.images["kites"], other), tmp_path / "run")
