"""Files, PIL images and arrays are read as by detectron2."""

import os

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from se_detection.inference.image_array import image_array

from ..data.hostile_images import images, noise
from ..helpers import raises


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_files_and_pil_images_match_detectron2(order, tmp_path) -> None:
    files = images()
    assert len(files) > 20
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        expected = read_image(str(path), order)
        found = image_array(path, order, "BGR")
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected), name
        with Image.open(path) as image:
            assert np.array_equal(image_array(image, order, "BGR"), expected), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_by_exif(orientation, tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "turned.png"
    noise().save(path, exif=exif)
    rgb = np.asarray(noise())
    # The EXIF orientation gives the sides of the image for the first row and column of the file.
    turned = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.swapaxes(0, 1),
        6: rgb[::-1].swapaxes(0, 1),
        7: rgb[::-1, ::-1].swapaxes(0, 1),
        8: rgb[:, ::-1].swapaxes(0, 1),
    }[orientation]
    assert np.array_equal(image_array(path, "RGB", "BGR"), turned)
    assert np.array_equal(image_array(Image.open(path), "BGR", "BGR"), turned[:, :, ::-1])


def test_arrays_are_converted_to_the_channel_order() -> None:
    rgb = np.asarray(noise())
    assert np.array_equal(image_array(rgb, "BGR", "RGB"), rgb[:, :, ::-1])
    assert image_array(rgb, "BGR", "BGR") is rgb


def test_broken_files_are_rejected(tmp_path) -> None:
    whole = tmp_path / "whole.png"
    noise().save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text.png").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    # 16-bit values above 255 would be clipped; smaller ones are kept.
    Image.fromarray(np.full((4, 5), 300, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 5), 200, np.uint16)).save(tmp_path / "shallow.png")
    for name, reason in {
        "cut.png": "",
        "text.png": "cannot identify image file",
        "pipe.png": "no such file",
        "deep.png": "pixels above 255",
    }.items():
        with raises("data.bad_image", name, reason):
            image_array(tmp_path / name, "RGB", "BGR")
    assert np.array_equal(image_array(tmp_path / "shallow.png", "RGB", "BGR"), np.full((4, 5, 3), 200))
