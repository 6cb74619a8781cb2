import cv2
import numpy as np
import pytest
from PIL import Image

from se_detection import UserError
from se_detection.inference.video import VideoFile, count_frames, frame_rate, read_frames


def test_frames_and_rate(clip) -> None:
    assert (count_frames(clip), frame_rate(clip)) == (6, 5.0)
    frames = list(read_frames(clip))
    assert [frame.shape for frame in frames] == [(120, 160, 3)] * 6
    assert [round(frame.mean()) for frame in frames] == [20, 40, 60, 80, 100, 120]


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
    middles = np.array([frame[60, 80] for frame in frames]).astype(int)
    expected = np.array([[200, 0, 25 * number] for number in range(8)])
    assert np.abs(middles - expected).max() < 12


def test_a_failed_video_is_removed(tmp_path) -> None:
    def fail() -> None:
        with VideoFile(tmp_path / "out.mp4", 10) as video:
            video.write(Image.new("RGB", (64, 64)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_missing_cameras_are_reported() -> None:
    with pytest.raises(UserError, match=r"^camera 63: no frame can be read"):
        next(read_frames(63))
