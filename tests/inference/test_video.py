import cv2
import numpy as np
import pytest
from PIL import Image

from se_detection.inference.video import VideoFile, read_frames, video_info

from ..helpers import raises


def test_frames_and_rate(clip, tmp_path) -> None:
    assert video_info(clip) == (6, 5.0)
    frames = list(read_frames(clip))
    assert [frame.shape for frame in frames] == [(120, 160, 3)] * 6
    assert [round(frame.mean()) for frame in frames] == [20, 40, 60, 80, 100, 120]
    (tmp_path / "empty.mp4").touch()
    assert video_info(tmp_path / "empty.mp4") is None


def test_unknown_numbers_of_frames_and_rates(clip, monkeypatch) -> None:
    class Unknown:
        def __init__(self, value: float) -> None:
            self.value = value

        def read(self) -> tuple[bool, None]:
            return True, None

        def get(self, key: int) -> float:
            return self.value

    for value in (float("nan"), float("inf"), 0.0, -1.0):
        monkeypatch.setattr(cv2, "VideoCapture", lambda source, value=value: Unknown(value))
        assert video_info(clip) == (0, 25.0)


def test_videos_round_trip(tmp_path) -> None:
    path = tmp_path / "out.mp4"
    with VideoFile(path, 12.5) as video:
        for number in range(8):
            video.write(Image.new("RGB", (161, 119), (25 * number, 0, 200)))
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    frames = [capture.read()[1] for _ in range(8)]
    assert not capture.read()[0]
    # Odd sides are rounded up.
    assert {frame.shape for frame in frames} == {(120, 162, 3)}
    expected = np.array([[200, 0, 25 * number] for number in range(8)])
    for y, x in ((60, 80), (119, 161)):
        assert np.abs(np.array([frame[y, x] for frame in frames]).astype(int) - expected).max() < 12


def test_a_failed_video_is_removed(tmp_path) -> None:
    def fail() -> None:
        with VideoFile(tmp_path / "out.mp4", 10) as video:
            video.write(Image.new("RGB", (64, 64)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_missing_cameras_and_codecs_are_reported(tmp_path) -> None:
    with raises("predict.no_frame", "camera 63"):
        next(read_frames(63))
    with raises("predict.no_codec", "out.unknown"), VideoFile(tmp_path / "out.unknown", 10) as video:
        video.write(Image.new("RGB", (64, 64)))
