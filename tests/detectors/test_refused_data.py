"""Masks and keypoints that can't be used for training, and their error messages."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from se_detection import model_zoo
from se_detection.engine.trainer import Trainer
from se_detection.errors import UserError

from .custom_data import KEYPOINTS, SIGMAS, changed, flags, load, use_rle
from .detectors import DETECTORS
from .shapes import draw

pytestmark = pytest.mark.usefixtures("catalogs")


def without(key: str):
    def change(content) -> None:
        del content["annotations"][1][key]

    return change


def rename_keypoint(content) -> None:
    content["categories"][0]["keypoints"] = ["top", "right_wing", "bottom", "left_fin"]


def remove_keypoint_names(content) -> None:
    del content["categories"][0]["keypoints"]


def remove_one_point(content) -> None:
    content["annotations"][2]["keypoints"] = content["annotations"][2]["keypoints"][:9]


def add_two_point_polygon(content) -> None:
    content["annotations"][0]["segmentation"] += [[1, 1, 5, 5]]


def swap_rle_size(content) -> None:
    use_rle(content)
    content["annotations"][3]["segmentation"]["size"].reverse()


SET_MASK_OFF = "or set MODEL.MASK_ON to False"
REFUSED = {
    "no mask": (
        "mask_rcnn_fpn",
        without("segmentation"),
        {},
        f"1 of 4 annotations have no usable mask: annotation 2 has none; give each 'segmentation': polygons or a "
        f"run-length code, {SET_MASK_OFF}",
    ),
    "polygon of two points": (
        "mask_rcnn_fpn",
        add_two_point_polygon,
        {},
        "annotation 1 has a polygon of fewer than three points",
    ),
    "RLE of another size": (
        "mask_rcnn_fpn",
        swap_rle_size,
        {},
        "annotation 4 has one of size [128, 96] (height, width), but its image is [96, 128]",
    ),
    "RLE as polygons": (
        "mask_rcnn_fpn",
        use_rle,
        {"INPUT.MASK_FORMAT": "polygon"},
        "INPUT.MASK_FORMAT: polygon contradicts",
    ),
    "unknown format": (
        "mask_rcnn_fpn",
        None,
        {"INPUT.MASK_FORMAT": "png"},
        "INPUT.MASK_FORMAT: 'png' is neither polygon nor bitmask",
    ),
    "no keypoints": ("keypoint_rcnn", without("keypoints"), {}, "annotation 2 has none; give each 'keypoints'"),
    "few keypoints": ("keypoint_rcnn", remove_one_point, {}, "annotation 3 has 9 numbers, but 4 keypoints need 12"),
    "no count": ("keypoint_rcnn", without("num_keypoints"), {}, "annotation 2 has no 'num_keypoints'"),
    "no names": ("keypoint_rcnn", remove_keypoint_names, {}, "category 10 'kite' has no 'keypoints'"),
    "no other side": ("keypoint_rcnn", rename_keypoint, {}, "keypoint 'right_wing' has no counterpart 'left_wing'"),
    "no sigmas": ("keypoint_rcnn", None, {}, "TEST.KEYPOINT_OKS_SIGMAS is empty, which means COCO's"),
    "few sigmas": ("keypoint_rcnn", None, {"TEST.KEYPOINT_OKS_SIGMAS": [0.1]}, "one for each"),
    "number of keypoints": (
        "keypoint_rcnn",
        None,
        {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 5},
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS: 5 contradicts",
    ),
    "no panoptic data": ("panoptic_fpn", None, {}, "register your data with detectron2's register_coco_panoptic_sep"),
    "augmented keypoints": (
        "keypoint_rcnn",
        None,
        {"TEST.AUG.ENABLED": True, "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS},
        "of a GeneralizedRCNN, and this is a GeneralizedRCNN with keypoints",
    ),
    "augmented retinanet": ("retinanet", None, {"TEST.AUG.ENABLED": True}, "and this is a RetinaNet; set it to False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_in_data_are_one_line(data, case, tmp_path) -> None:
    name, change, overrides, message = REFUSED[case]
    source = "kites" if name == "keypoint_rcnn" else "things"
    json_file = vars(data)[source]
    wrong = changed(json_file, tmp_path / "wrong.json", change or (lambda content: None))
    with pytest.raises(UserError) as caught:
        load(name, flags(wrong, data.images[source]), tmp_path / "run", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("mask_rcnn_fpn", "segmentation", "MODEL.MASK_ON: 2 of the 2 objects in a.png have no 'segmentation'"),
        ("keypoint_rcnn", "keypoints", "MODEL.KEYPOINT_ON: 2 of the 2 objects in a.png have no 'keypoints'"),
    ],
)
def test_data_registered_in_python_is_checked_before_training(name, key, message, tmp_path) -> None:
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
        "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS,
    }
    cfg = load(name, [], tmp_path, values | {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 4})
    with pytest.raises(UserError) as caught:
        Trainer.build_train_loader(cfg)
    assert message in str(caught.value)


def test_files_must_have_the_same_keypoints(data, tmp_path) -> None:
    def reverse(content) -> None:
        content["categories"][0]["keypoints"].reverse()

    other = changed(data.kites, tmp_path / "other.json", reverse)
    with pytest.raises(UserError, match=f"^{other} has other 'keypoints' than {data.kites}, or in another order"):
        load("keypoint_rcnn", flags(data.kites, data.images["kites"], other), tmp_path / "run")


def test_the_tool_prints_one_line(data, run_script, tmp_path, capsys) -> None:
    wrong = changed(data.things, tmp_path / "boxes.json", without("segmentation"))
    config = model_zoo.get_config_file(DETECTORS["mask_rcnn_fpn"].config)
    data_flags = flags(wrong, data.images["things"])
    with pytest.raises(SystemExit) as caught:
        run_script("train_net.py", "--config-file", config, *data_flags, "OUTPUT_DIR", tmp_path / "run")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {wrong}: 1 of 4 annotations have no usable mask")
