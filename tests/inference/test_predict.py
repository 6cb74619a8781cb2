import json
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

from se_detection import UserError
from se_detection.engine.signals import Interrupted
from se_detection.inference.detector import Detector
from se_detection.inference.predict import predict
from se_detection.visualization.drawing import class_colours

from ..helpers import raises
from .conftest import CATEGORIES, FakeDetector, write_video

PLATE = class_colours({3: "cup", 7: "plate"})[7]
CUP = class_colours({3: "cup", 7: "plate"})[3]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_near(pixel, colour, tolerance: int = 12) -> bool:
    return np.abs(np.asarray(pixel).astype(int) - colour).max() <= tolerance


def frames(path: Path) -> list:
    capture = cv2.VideoCapture(str(path))
    found = []
    while (read := capture.read())[0]:
        found.append(read[1][:, :, ::-1])
    return found


def stop_at(fake: FakeDetector, call: int) -> None:
    fake.before = lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == call else None


def test_boxes_are_drawn(fake, photos, tmp_path) -> None:
    (photos / "labels.txt").touch()
    done = predict([str(photos)], [fake], tmp_path / "out")
    assert (done.images, done.unreadable, done.skipped) == (3, {}, [photos / "labels.txt"])
    images = sorted((tmp_path / "out" / "pictures").iterdir())
    assert [path.name for path in images] == ["00001_0.jpg", "00002_1.jpg", "00003_2.jpg"]
    for path, grey in zip(images, (20, 60, 100), strict=True):
        drawn = np.asarray(Image.open(path))
        # Four times the size of the image, so that labels can be read.
        assert drawn.shape == (480, 640, 3)
        left, right, top, bottom = 4 * grey, 4 * (grey + 30), 4 * 20, 4 * 50
        edges = [
            drawn[140, left : left + 2],
            drawn[140, right - 1 : right + 1],
            drawn[bottom - 1 : bottom + 1, left + 60],
        ]
        assert all(is_near(edge.mean(axis=0), PLATE, 25) for edge in edges)
        # Above the box are class and score, in black on the class's colour.
        label = drawn[top - 15 : top - 1, left + 1 : left + 40]
        assert label.min() < 90
        assert is_near(np.median(label.reshape(-1, 3), axis=0), PLATE, 25)
        # Detections with a score below 0.5 are not drawn, and the rest of the image is unchanged.
        assert is_near(drawn[240, 20], (grey,) * 3, 3)
        assert is_near(drawn[140, left + 60], (grey,) * 3, 3)


def test_score_applies_to_drawings_only(fake, photos, tmp_path) -> None:
    predict([str(photos / "0.png")], [fake], tmp_path / "out", score=0.4)
    drawn = np.asarray(Image.open(tmp_path / "out" / "pictures" / "00001_0.jpg"))
    assert is_near(drawn[280, 20:22].mean(axis=0), CUP, 25)
    with raises("predict.score", "--score 40.0"):
        predict([str(photos)], [fake], tmp_path / "other", score=40.0)


def test_results_are_in_cocos_format(fake, photos, clip, tmp_path) -> None:
    predict([str(photos), str(clip)], [fake], tmp_path / "out")
    truth = COCO(str(tmp_path / "out" / "images.json"))
    results = truth.loadRes(str(tmp_path / "out" / "coco_instances_results.json"))
    assert truth.getImgIds() == list(range(1, 10))
    assert [category["name"] for category in truth.loadCats([3, 7])] == ["cup", "plate"]
    named = [(image["file_name"], image.get("frame"), image["width"]) for image in truth.loadImgs(truth.getImgIds())]
    assert named[:3] == [(str(photos / f"{number}.png"), None, 160) for number in range(3)]
    assert named[3:] == [(str(clip), number, 160) for number in range(6)]
    for image_id, grey in enumerate((20, 60, 100, 20, 40, 60, 80, 100, 120), 1):
        cup, plate = sorted(results.loadAnns(results.getAnnIds(image_id)), key=lambda item: item["category_id"])
        assert plate["bbox"] == [grey, 20, 30, 30]
        assert (cup["score"], plate["score"]) == (0.4, 0.9)


class FakeMaskDetector(FakeDetector):
    """Also has a mask for the plate, the upper half of its box, and one keypoint, its centre."""

    def __call__(self, image, image_id):
        plate, cup = super().__call__(image, image_id)
        inside = np.zeros(image.shape[:2], np.uint8, order="F")
        left = int(plate["bbox"][0])
        inside[20:35, left : left + 30] = 1
        code = masks.encode(inside)
        code = {"size": code["size"], "counts": code["counts"].decode()}
        return [{**plate, "segmentation": code, "keypoints": [left + 14.5, 34.5, 0.9]}, cup]


def test_masks_and_keypoints_are_drawn_and_written(clip, photos, tmp_path) -> None:
    detector = FakeMaskDetector(tmp_path)
    # In the video: its first frames are drawn again from the notes.
    stop_at(detector, 5)
    with pytest.raises(Interrupted):
        predict([str(photos), str(clip)], [detector], tmp_path / "out")
    detector.before = lambda number: None
    predict([str(photos), str(clip)], [detector], tmp_path / "out")
    truth = COCO(str(tmp_path / "out" / "images.json"))
    found = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    plates = [item for item in found if item["category_id"] == 7]
    assert len(plates) == 9
    # As COCO reads them.
    for kind in ("segmentation", "keypoints"):
        kept = [{key: item[key] for key in ("image_id", "category_id", "score", kind)} for item in plates]
        results = truth.loadRes(kept)
        assert [item["area"] for item in results.anns.values()] == ([15 * 30] if kind == "segmentation" else [0]) * 9
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out" / "pictures").iterdir())]
    shown = [*drawn, *frames(tmp_path / "out" / "videos" / "00004_clip.mp4")]
    for frame, grey in zip(shown, (20, 60, 100, 20, 40, 60, 80, 100, 120), strict=True):
        x = 4 * grey
        tinted = 0.55 * grey + 0.45 * np.array(PLATE)
        assert is_near(frame[100, x + 20], tinted, 25)
        assert is_near(frame[180, x + 20], (grey,) * 3, 25)
        assert is_near(frame[140, x + 60], PLATE, 40)


def test_videos_keep_their_frames_and_rate(fake, clip, tmp_path) -> None:
    predict([str(clip)], [fake], tmp_path / "out")
    path = tmp_path / "out" / "videos" / "00001_clip.mp4"
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 5
    shown = frames(path)
    assert [frame.shape for frame in shown] == [(480, 640, 3)] * 6
    for number, frame in enumerate(shown):
        left = 4 * 20 * (number + 1)
        row = frame[140].astype(int)
        assert is_near(row[left : left + 2].mean(axis=0), PLATE, 90)
        assert is_near(row[left + 60], (20 * (number + 1),) * 3)
    assert not (tmp_path / "out" / "pictures").exists()


def test_two_detectors_are_drawn_side_by_side(fake, photos, clip, tmp_path) -> None:
    other = FakeDetector(tmp_path, "other", left=3.0)
    # As if the annotations of the second run are missing.
    other.categories = {1: "cup", 2: "plate"}
    predict([str(photos), str(clip)], [fake, other], tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out" / "pictures" / "00002_1.jpg"))
    assert drawn.shape[1] == 2 * 640 + 8
    panels = drawn[-480:, :640], drawn[-480:, 648:]
    for panel, left in zip(panels, (4 * 60, 4 * 3), strict=True):
        assert is_near(panel[140, left : left + 2].mean(axis=0), PLATE, 25)
    assert is_near(panels[1][140, 4 * 60], (60,) * 3, 3)
    # Each has its name above.
    assert all(drawn[:-480, half].min() < 60 for half in (slice(0, 640), slice(648, None)))
    assert len(frames(tmp_path / "out" / "videos" / "00004_clip.mp4")) == 6
    names = ("coco_instances_results.json", "coco_instances_results_compared.json")
    both = [json.loads((tmp_path / "out" / name).read_text()) for name in names]
    assert [len(results) for results in both] == [18, 18]
    assert {entry["bbox"][0] for entry in both[1] if entry["score"] > 0.5} == {3}

    other.categories = {1: "cup", 2: "fork"}
    with raises("predict.other_classes", "fork"):
        predict([str(photos)], [fake, other], tmp_path / "third")


def test_single_images_keep_their_size_and_pairs_are_limited(fake, tmp_path) -> None:
    Image.new("RGB", (2000, 1000), (40,) * 3).save(tmp_path / "large.png")
    predict([str(tmp_path / "large.png")], [fake], tmp_path / "one")
    assert Image.open(tmp_path / "one" / "pictures" / "00001_large.jpg").size == (2000, 1000)
    predict([str(tmp_path / "large.png")], [fake, FakeDetector(tmp_path, "other")], tmp_path / "two")
    sheet = Image.open(tmp_path / "two" / "pictures" / "00001_large.jpg")
    assert sheet.width == 2 * 1280 + 8
    assert 640 < sheet.height < 700


@pytest.mark.parametrize("call", [1, 5], ids=["in an image", "in a video"])
def test_a_stopped_prediction_can_be_resumed(fake, photos, clip, tmp_path, call, capsys) -> None:
    inputs = [str(photos), str(clip)]
    whole = FakeDetector(tmp_path)
    predict(inputs, [whole], tmp_path / "whole")

    stop_at(fake, call)
    with pytest.raises(Interrupted) as caught:
        predict(inputs, [fake], tmp_path / "out")
    assert caught.value.code == 143
    assert (
        f"SIGTERM: stopped after {call + 1} images and frames; run the same command to resume"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out" / "images.json").exists()
    # A killed process may leave half a line.
    with (tmp_path / "out" / "predictions.jsonl").open("a") as notes:
        notes.write('{"image": {"id": 7, "file_n')
    fake.before = lambda number: None
    predict(inputs, [fake], tmp_path / "out")
    assert fake.calls == whole.calls == list(range(1, 10))
    assert files(tmp_path / "out") == files(tmp_path / "whole")

    # Finished images are skipped; new ones are added.
    Image.new("RGB", (160, 120)).save(photos / "new.png")
    done = predict(inputs, [fake], tmp_path / "out")
    assert fake.calls == list(range(1, 11))
    assert str(photos / "new.png") in (tmp_path / "out" / "images.json").read_text()
    assert done.images == 10


def test_other_files_and_predictions_are_not_replaced(fake, photos, tmp_path) -> None:
    out = tmp_path / "out"
    predict([str(photos)], [fake], out)
    (out / "notes.txt").write_text("mine")
    (out / "pictures" / "mine.jpg").write_text("mine")
    before = files(out)
    for score, detector in ((0.3, fake), (0.5, FakeDetector(tmp_path, fingerprint="1" * 64))):
        with raises("predict.other_detector", out, detector.fingerprint[:16]):
            predict([str(photos)], [detector], out, score=score)
    assert files(out) == before
    predict([str(photos / "1.png")], [fake], out, score=0.3, overwrite=True)
    after = files(out)
    assert after["notes.txt"] == after["pictures/mine.jpg"] == b"mine"
    assert sorted(name for name in after if name.startswith("pictures")) == [
        "pictures/00001_1.jpg",
        "pictures/mine.jpg",
    ]

    evaluation = tmp_path / "inference"
    evaluation.mkdir()
    (evaluation / "coco_instances_results.json").write_text("[]")
    for overwrite in (False, True):
        with raises("output.exists", "predictions.jsonl"):
            predict([str(photos)], [fake], evaluation, overwrite=overwrite)
    assert files(evaluation) == {"coco_instances_results.json": b"[]"}
    with raises("output.is_file", "notes.txt"):
        predict([str(photos)], [fake], out / "notes.txt" / "out")
    for damaged in ("spoilt\n", "[]\n", after["predictions.jsonl"].decode().replace("file_name", "name")):
        (out / "predictions.jsonl").write_text(damaged)
        with raises("predict.damaged", "predictions.jsonl"):
            predict([str(photos)], [fake], out, score=0.3)


def test_unreadable_files_are_an_error_or_skipped(fake, photos, clip, tmp_path) -> None:
    (photos / "1.png").write_text("no image")
    shutil.copy(clip, photos)
    os.truncate(photos / "clip.avi", 300)
    with raises("predict.unreadable", "2 of 4", photos / "1.png"):
        predict([str(photos)], [fake], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not fake.calls
    done = predict([str(photos)], [fake], tmp_path / "out", skip_bad_images=True)
    assert list(done.unreadable) == [photos / "1.png", photos / "clip.avi"]
    assert done.images == 2
    with raises("predict.unreadable", "1 of 1"):
        predict([str(photos / "1.png")], [fake], tmp_path / "none", skip_bad_images=True)


def test_file_names_that_are_not_utf8_are_kept(fake, photos, tmp_path) -> None:
    path = os.fsencode(photos) + b"/\xff\xfe.png"
    shutil.copy(photos / "0.png", path)
    predict([str(photos)], [fake], tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert path in [os.fsencode(image["file_name"]) for image in listed]
    # It can be resumed.
    assert predict([str(photos)], [fake], tmp_path / "out").images == 4


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


def test_truncated_videos_are_reported(fake, tmp_path) -> None:
    path = tmp_path / "noise.avi"
    write_video(path, list(np.random.default_rng(0).integers(0, 255, (6, 120, 160, 3), dtype=np.uint8)))
    os.truncate(path, path.stat().st_size * 2 // 3)
    done = predict([str(path)], [fake], tmp_path / "out")
    assert 2 <= done.images <= 4
    assert done.unreadable == {path: f"only the first {done.images} of 6 frames can be decoded"}


def test_a_camera_is_recorded_until_a_signal(fake, clip, photos, tmp_path, monkeypatch) -> None:
    opened = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: opened(str(clip) if source == 2 else source))

    def look(number: int) -> None:
        time.sleep(0.15)
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    fake.before = look
    done = predict(["camera:2"], [fake], tmp_path / "out")
    assert done.images == 4
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [(image["file_name"], image["frame"]) for image in images] == [("camera:2", number) for number in range(4)]
    # Ten frames per second.
    assert 5 <= len(frames(tmp_path / "out" / "videos" / "00001_camera_2.mp4")) <= 20
    with raises("predict.no_frame", "camera 63"):
        predict(["camera:63"], [fake], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with raises("predict.no_resume", "camera:2"):
        predict(["camera:2"], [fake], tmp_path / "out")


@pytest.mark.slow
def test_the_tool_on_a_run(trained, run_script, tmp_path, capsys) -> None:
    folder = trained.parent / "val"
    out = tmp_path / "out"
    run_script("predict.py", "--run", trained, "--output", out, "--score", "0.01", folder)
    printed = capsys.readouterr()
    assert (
        f"Written (3 images and frames):\n  {out / 'pictures'}\n  {out / 'coco_instances_results.json'}" in printed.out
    )
    # No bar outside a terminal.
    assert "%|" not in printed.err
    images = json.loads((out / "images.json").read_text())
    assert {category["id"]: category["name"] for category in images["categories"]} == CATEGORIES
    detector = Detector(trained)
    expected = [
        entry for image in images["images"] for entry in detector(read_image(image["file_name"], "BGR"), image["id"])
    ]
    assert json.loads((out / "coco_instances_results.json").read_text()) == expected
    for image in images["images"]:
        path = out / "pictures" / f"{image['id']:05d}_{Path(image['file_name']).stem}.jpg"
        plain = np.asarray(Image.open(image["file_name"]).resize((640, 640), Image.Resampling.BICUBIC)).astype(int)
        assert (np.abs(np.asarray(Image.open(path)) - plain).max(axis=2) > 60).mean() > 0.02

    image = images["images"][0]["file_name"]
    run_script("predict.py", "--run", trained, "--compare", trained, "--output", tmp_path / "two", image)
    results = (tmp_path / "two" / "coco_instances_results_compared.json").read_text()
    assert json.loads(results) == [entry for entry in expected if entry["image_id"] == 1]
    with pytest.raises(SystemExit) as caught:
        run_script("predict.py", "--run", tmp_path / "nowhere", folder)
    assert caught.value.code == 2
    assert "[run.no_config]" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_gates_are_drawn_for_each_image(trained, run_script, tmp_path, capsys) -> None:
    """Their mean over the test set is computed first, and kept in the run's folder."""
    images = trained.parent / "val"
    arguments = ["predict.py", "--run", trained, "--output", tmp_path / "out", "--gates", images]
    run_script(*arguments)
    assert (trained / "excitations" / "excitations.npz").is_file()
    sheets = sorted((tmp_path / "out" / "pictures").glob("*_gates.png"))
    assert len(sheets) == 3
    assert all(np.asarray(Image.open(sheet).convert("RGB")).std() > 10 for sheet in sheets)
    before = {sheet: sheet.stat().st_mtime_ns for sheet in sheets}
    run_script(*arguments)
    assert {sheet: sheet.stat().st_mtime_ns for sheet in sheets} == before
    with pytest.raises(SystemExit) as caught:
        run_script("predict.py", "--run", trained, "--output", tmp_path / "out", images)
    assert caught.value.code == 2
    assert "[predict.other_detector]" in capsys.readouterr().err
