"""Images are read as detectron2 reads them, whatever they are given as."""

import os

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from se_detection import UserError
from se_detection.inference.image_array import image_array

from ..data.hostile_images import images, noise


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_files_and_images_are_those_of_detectron2(order, tmp_path) -> None:
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
def test_images_are_turned_as_exif_says(orientation, tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "turned.png"
    noise().save(path, exif=exif)
    rgb = np.asarray(noise())
    # EXIF: where the first row and the first column of the file belong in the image.
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


def test_an_array_is_reversed_if_its_order_is_another() -> None:
    rgb = np.asarray(noise())
    assert np.array_equal(image_array(rgb, "BGR", "RGB"), rgb[:, :, ::-1])
    assert image_array(rgb, "BGR", "BGR") is rgb


def test_a_file_that_is_broken_or_none_is_told(tmp_path) -> None:
    whole = tmp_path / "whole.png"
    noise().save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text.png").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    # 16 bits would be cut off at 255; of 8 bits in 16, nothing is lost.
    Image.fromarray(np.full((4, 5), 300, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((4, 5), 200, np.uint16)).save(tmp_path / "shallow.png")
    for name, message in {
        "cut.png": "cut.png can't be used: .*mend it or leave it out",
        "text.png": "text.png can't be used: cannot identify image file",
        "pipe.png": "pipe.png: there is no such file",
        "deep.png": r"deep.png can't be used: pixels above 255 \(mode I;16\)",
    }.items():
        with pytest.raises(UserError, match=message):
            image_array(tmp_path / name, "RGB", "BGR")
    assert np.array_equal(image_array(tmp_path / "shallow.png", "RGB", "BGR"), np.full((4, 5, 3), 200))
