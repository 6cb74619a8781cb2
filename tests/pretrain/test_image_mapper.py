import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image
from torchvision.transforms import functional as F

from se_detection.pretrain.image_mapper import ImageMapper
from se_detection.pretrain.pretrain_config import PRETRAIN

from ..helpers import raises


@pytest.fixture
def cfg() -> CfgNode:
    return CfgNode({"PRETRAIN": {**PRETRAIN, "TRAIN_SIZE": 24, "TEST_SIZE": 32, "TEST_RESIZE": 40}})


@pytest.fixture
def item(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return {"file_name": str(path), "label": 3}


@pytest.mark.parametrize("resize", [40, 33, 57])
def test_test_images_are_resized_and_centre_cropped(cfg, item, resize) -> None:
    cfg.PRETRAIN.TEST_RESIZE = resize
    theirs = F.center_crop(F.resize(Image.open(item["file_name"]), resize), 32)
    ours = ImageMapper.from_cfg(cfg, is_train=False)(item)
    np.testing.assert_array_equal(ours["image"], np.asarray(theirs).transpose(2, 0, 1))
    assert ours["label"] == 3


def test_training_images_are_cropped_and_flipped(cfg, item) -> None:
    """An image with a dark and a bright half shows whether it is flipped."""
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).save(item["file_name"])
    cfg.PRETRAIN.CROP_SCALE = [1.0, 1.0]
    images = [ImageMapper.from_cfg(cfg, is_train=True)(item)["image"] for _ in range(30)]
    assert {image.shape for image in images} == {(3, 24, 24)}
    left_is_dark = [bool(image[0, 12, 2] < image[0, 12, -3]) for image in images]
    assert {True, False} == set(left_is_dark)


def test_crop_scale_sets_the_size_of_crops(cfg, item) -> None:
    """In a horizontal gradient, the range of a crop's values shows its width."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    Image.fromarray(ramp).save(item["file_name"])
    for scale, low, high in ((0.04, 30, 50), (1.0, 180, 200)):
        cfg.PRETRAIN.CROP_SCALE = [scale, scale]
        images = [ImageMapper.from_cfg(cfg, is_train=True)(item)["image"] for _ in range(10)]
        widths = [int(image.max()) - int(image.min()) for image in images]
        assert low <= np.mean(widths) <= high


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_color_jitter_changes_colours(cfg, item, jitter) -> None:
    Image.new("RGB", (50, 50), (90, 120, 150)).save(item["file_name"])
    cfg.PRETRAIN.COLOR_JITTER = jitter
    colours = {tuple(ImageMapper.from_cfg(cfg, is_train=True)(item)["image"][:, 5, 5]) for _ in range(5)}
    assert (colours == {(90, 120, 150)}) == (jitter == 0)


def test_a_broken_image_is_refused_by_name(cfg, item) -> None:
    with open(item["file_name"], "wb") as file:
        file.write(b"no image")
    with raises("data.bad_image", "image.png"):
        ImageMapper.from_cfg(cfg, is_train=True)(item)
