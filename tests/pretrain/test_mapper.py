import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image
from torchvision.transforms import functional as F

from se_detection import UserError
from se_detection.pretrain.config import PRETRAIN
from se_detection.pretrain.mapper import ImageMapper


@pytest.fixture
def cfg() -> CfgNode:
    return CfgNode({"PRETRAIN": {**PRETRAIN, "TRAIN_SIZE": 24, "TEST_SIZE": 32, "TEST_RESIZE": 40}})


@pytest.fixture
def item(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return {"file_name": str(path), "label": 3}


def test_testing_is_resize_and_centre_crop(cfg, item) -> None:
    theirs = F.center_crop(F.resize(Image.open(item["file_name"]), 40), 32)
    found = ImageMapper(cfg, is_train=False)(item)
    np.testing.assert_array_equal(found["image"], np.asarray(theirs).transpose(2, 0, 1))
    assert found["label"] == 3


def test_training_crops_and_flips(cfg, item) -> None:
    """A picture with a left half and a right half shows which way round it is."""
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(item["file_name"])
    cfg.PRETRAIN.CROP_SCALE = [1.0, 1.0]
    found = [ImageMapper(cfg, is_train=True)(item)["image"] for _ in range(30)]
    assert {image.shape for image in found} == {(3, 24, 24)}
    left_is_dark = [bool(image[0, 12, 2] < image[0, 12, -3]) for image in found]
    assert {True, False} == set(left_is_dark)


def test_a_picture_of_one_channel_has_three(cfg, item) -> None:
    Image.open(item["file_name"]).convert("L").save(item["file_name"])
    assert ImageMapper(cfg, is_train=False)(item)["image"].shape == (3, 32, 32)


def test_a_broken_picture_is_named(cfg, item) -> None:
    with open(item["file_name"], "wb") as file:
        file.write(b"no picture")
    with pytest.raises(UserError, match=r"picture\.png can't be used"):
        ImageMapper(cfg, is_train=True)(item)
