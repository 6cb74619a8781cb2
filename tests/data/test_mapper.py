import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from se_detection.data.mapper import CheckedMapper

from ..helpers import raises


@pytest.fixture
def image(tmp_path) -> dict:
    path = tmp_path / "image.png"
    Image.effect_noise((64, 48), 50).convert("RGB").save(path)
    return {"file_name": str(path), "width": 64, "height": 48, "image_id": 1, "annotations": []}


def test_images_are_read_as_in_detectron2(image) -> None:
    theirs = DatasetMapper(get_cfg(), is_train=False)(copy.deepcopy(image))
    ours = CheckedMapper(get_cfg(), is_train=False)(image)
    assert torch.equal(ours["image"], theirs["image"])


@pytest.mark.parametrize("masks", [False, True])
def test_training_images_match_detectron2_with_and_without_masks(image, masks) -> None:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = masks
    for left in (2.0, 30.0):
        outline = [left, 4.0, left + 20, 4.0, left + 20, 40.0]
        box = {"bbox": [left, 4.0, 20.0, 36.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
        image["annotations"].append({**box, "segmentation": [outline], "iscrowd": 0})
    before = copy.deepcopy(image)
    found = []
    for mapper in (DatasetMapper, CheckedMapper):
        np.random.seed(1)
        found.append(mapper(cfg, is_train=True)(image))
    theirs, ours = found
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["instances"].get_fields().keys() == theirs["instances"].get_fields().keys()
    assert ours["instances"].has("gt_masks") == masks
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    assert len(ours["instances"]) == 2
    assert image == before


def test_bad_images_are_named(image, tmp_path) -> None:
    mapper = CheckedMapper(get_cfg(), is_train=False)
    cases = [image | {"width": 65}, image | {"file_name": str(tmp_path / "missing.png")}]
    whole = (tmp_path / "image.png").read_bytes()
    for suffix, content in (("cut.png", whole[: len(whole) // 2]), ("empty.png", b""), ("text.png", b"no image")):
        (tmp_path / suffix).write_bytes(content)
        cases.append(image | {"file_name": str(tmp_path / suffix)})
    for case in cases:
        with raises("data.bad_image", case["file_name"]):
            mapper(case)


def test_given_keypoint_pairs_are_swapped_in_flipped_images() -> None:
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.DATASETS.TRAIN = ("keypoints_coco_2017_val",)
    flipped = CheckedMapper.from_config(cfg)["keypoint_hflip_indices"]
    assert flipped == DatasetMapper.from_config(cfg)["keypoint_hflip_indices"]
    cfg.INPUT.KEYPOINT_FLIP_MAP = MetadataCatalog.get(*cfg.DATASETS.TRAIN).keypoint_flip_map[:2]
    # COCO's 1 and 2 are the eyes, 3 and 4 the ears.
    assert CheckedMapper.from_config(cfg)["keypoint_hflip_indices"] == [*flipped[:5], *range(5, 17)]
