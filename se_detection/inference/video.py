"""Reads and writes videos and reads cameras, frame by frame, with OpenCV."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError
from ..files import UNFINISHED

Frame = NDArray[np.uint8]

# MPEG-4, which all builds of OpenCV can write.
CODEC, SUFFIX = "mp4v", ".mp4"
USUAL_RATE = 25.0


def count_frames(path: Path) -> int | None:
    """Number of frames by a video's header, 0 if unknown; None if the first frame can't be decoded."""
    with _capture(str(path)) as capture:
        if not capture.read()[0]:
            return None
        number = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        return int(number) if math.isfinite(number) and number > 0 else 0


def frame_rate(path: Path) -> float:
    """Frames per second; 25 if unknown."""
    with _capture(str(path)) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
        return rate if math.isfinite(rate) and rate > 0 else USUAL_RATE


def read_frames(source: Path | int) -> Iterator[Frame]:
    """Yields the frames of a video, or of the camera with this number: (H, W, 3) in BGR, rotated by its metadata.

    Raises:
        UserError: the first frame can't be read.
    """
    name = f"camera {source}" if isinstance(source, int) else str(source)
    with _capture(source if isinstance(source, int) else name) as capture:
        success, frame = capture.read()
        if not success:
            raise UserError(f"{name}: no frame can be read; check that it is connected or exists, and is not in use")
        while success:
            yield frame
            success, frame = capture.read()


class VideoFile:
    """Writes a video frame by frame under a temporary name, and renames it when it is complete.

    Args:
        path: with the extension `.mp4`.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self.part = path.with_name(f"{path.stem}{UNFINISHED}{path.suffix}")
        self.writer: Any = None
        self.frames = 0

    def write(self, image: Image.Image) -> None:
        """Appends a frame, of the same size as the first one.

        Raises:
            UserError: the file can't be written.
        """
        # The codec crops odd sizes, so pad them to even ones.
        width, height = (side + side % 2 for side in image.size)
        frame = np.asarray(image.crop((0, 0, width, height)))[:, :, ::-1]
        if self.writer is None:
            codec = cv2.VideoWriter.fourcc(*CODEC)
            self.writer = cv2.VideoWriter(str(self.part), codec, self.rate, (width, height))
            if not self.writer.isOpened():
                raise UserError(f"{self.path}: OpenCV can't write this video ({CODEC}, {width}x{height})")
        self.writer.write(np.ascontiguousarray(frame))
        self.frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Renames the file, or removes it after an error; without frames there is no file."""
        if self.writer is None:
            return
        self.writer.release()
        if failure is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)


@contextmanager
def _capture(source: str | int) -> Iterator[Any]:
    capture = cv2.VideoCapture(source)
    try:
        yield capture
    finally:
        capture.release()
