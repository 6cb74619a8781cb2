"""Damaged and hostile images and prediction folders."""

import json
import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from hypothesis import given
from PIL import Image

from se_detection import UserError
from se_detection.inference.detector import Detector
from se_detection.inference.inputs import unreadable
from se_detection.inference.predict import predict
from se_detection.inference.predictor import check_shape

from ..data.hostile_images import broken, images, no_files, write_all
from ..fuzzing import Tally, damaged, examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def tally(request) -> Iterator[Tally]:
    found = Tally(request.param)
    yield found
    print(f"\n{found}")
    assert found.counts["refused"]
    assert found.counts["read"]


@pytest.mark.parametrize("tally", ["inputs of predict"], indirect=True)
def test_all_kinds_of_image_files(tally, fake, tmp_path) -> None:
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


class Thin(Detector):
    """A detector without detections, with the size limits of a real one."""

    def __init__(self, fake) -> None:
        self.name, self.weights, self.categories, self.fingerprint = "thin", fake.weights, fake.categories, "0" * 64
        self.cfg = get_cfg()
        self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST = 192, 320

    def __call__(self, image, image_id):
        check_shape(image, self.cfg)
        return []


def test_thin_images_are_rejected_or_skipped(fake, photos, tmp_path) -> None:
    thin = photos / "thin.png"
    Image.new("RGB", (20_000, 10)).save(thin)
    with pytest.raises(UserError, match=r"thin\.png: 20000x10 pixels are too long and thin for .* 320"):
        predict([str(photos)], [Thin(fake)], tmp_path / "out")
    done = predict([str(photos)], [Thin(fake)], tmp_path / "other", skip_bad_images=True)
    assert done.images == 3
    assert list(done.unreadable) == [thin]


NOTES = [
    {"made_by": {"weights": ["model_final.pth 0000000000000000"], "score": 0.5}},
    {
        "image": {"id": 1, "file_name": "/a.png", "width": 4, "height": 5},
        "detections": [[{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]],
    },
    {"image": {"id": 2, "file_name": "/b.mp4", "frame": 0, "width": 4, "height": 5}, "detections": [[]]},
    {"finished": "/b.mp4"},
]


@pytest.mark.parametrize("tally", ["predictions.jsonl"], indirect=True)
@examples(60)
@given(data=damaged(NOTES))
def test_damaged_predictions_are_resumed_or_rejected(tally, fake, photos, tmp_path, data) -> None:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    try:
        lines = json.loads(data)
        data = "".join(json.dumps(line) + "\n" for line in lines).encode() if isinstance(lines, list) else data
    except (ValueError, RecursionError):
        pass
    (out / "predictions.jsonl").write_bytes(data)
    done = tally.refused(predict, [str(photos / "0.png")], [fake], out)
    if done is not None:
        results = json.loads((out / "coco_instances_results.json").read_text())
        listed = json.loads((out / "images.json").read_text())["images"]
        assert [image["id"] for image in listed] == list(range(1, len(listed) + 1))
        assert np.isfinite([value for item in results for value in item["bbox"]]).all()
    shutil.rmtree(out)
