"""Damaged and hostile images and prediction folders."""

import json
import os
import shutil

import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from se_detection import UserError
from se_detection.inference.inputs import unreadable
from se_detection.inference.predict import predict

from ..data.hostile_images import broken, images, no_files, write_all
from ..fuzzing import Tally
from ..helpers import raises
from .conftest import FakeDetector

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.slow
def test_all_kinds_of_image_files(fake, tmp_path) -> None:
    tally = Tally("inputs of predict")
    good = write_all(tmp_path / "good", images)
    bad = [*write_all(tmp_path / "bad", broken), *no_files(tmp_path / "none")[1:]]
    for number, path in enumerate(bad):
        done = tally.refused(predict, [str(path)], [fake], tmp_path / f"out{number}")
        assert done is None
        assert not (tmp_path / f"out{number}").exists()
    named = [path for path in bad if path.is_file()]
    done = tally.refused(predict, [*map(str, good), *map(str, named)], [fake], tmp_path / "out", skip_bad_images=True)
    assert done.images == len(good)
    assert set(done.unreadable) == set(named)
    assert all(map(str.isprintable, done.unreadable.values()))
    listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["file_name"] for image in listed] == list(map(str, good))
    for image in listed:
        assert read_image(image["file_name"]).shape[:2] == (image["height"], image["width"])
    drawn = sorted((tmp_path / "out" / "pictures").iterdir())
    assert len(drawn) == len(good)
    for path in drawn:
        with Image.open(path) as image:
            image.load()


def test_file_names_that_are_not_utf8_are_kept(fake, photos, tmp_path) -> None:
    path = os.fsencode(photos) + b"/\xff\xfe.png"
    shutil.copy(photos / "0.png", path)
    predict([str(photos)], [fake], tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert path in [os.fsencode(image["file_name"]) for image in listed]
    # It can be resumed.
    assert predict([str(photos)], [fake], tmp_path / "out").images == 4


def test_pipes_are_not_images_or_videos(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    assert list(unreadable([tmp_path / "pipe.mp4", tmp_path / "pipe.png"]).values()) == ["no such file"] * 2


def test_drawings_are_resized_to_the_limit_of_jpeg(fake, tmp_path) -> None:
    Image.new("RGB", (66_000, 40)).save(tmp_path / "long.png")
    predict([str(tmp_path / "long.png")], [fake], tmp_path / "out")
    assert Image.open(tmp_path / "out" / "pictures" / "00001_long.jpg").width == 65_500


class Thin(FakeDetector):
    """Refuses images as a predictor does."""

    def __call__(self, image, image_id):
        if image.shape[1] > 10_000:
            raise UserError("data.too_thin", "too long and thin")
        return []


def test_thin_images_are_rejected_or_skipped(photos, tmp_path) -> None:
    thin = photos / "thin.png"
    Image.new("RGB", (20_000, 10)).save(thin)
    with raises("data.too_thin", thin):
        predict([str(photos)], [Thin(tmp_path)], tmp_path / "out")
    done = predict([str(photos)], [Thin(tmp_path)], tmp_path / "other", skip_bad_images=True)
    assert done.images == 3
    assert list(done.unreadable) == [thin]
