"""Videos and cameras, frame by frame, through OpenCV."""

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

# MPEG-4: what every build of OpenCV writes.
CODEC, SUFFIX = "mp4v", ".mp4"
USUAL_RATE = 25.0


def count_frames(path: Path) -> int | None:
    """How many frames a video says that it has, 0 if it doesn't say; None if the first can't be decoded."""
    with _capture(str(path)) as capture:
        if not capture.read()[0]:
            return None
        number = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        return int(number) if math.isfinite(number) and number > 0 else 0


def frame_rate(path: Path) -> float:
    """Frames per second; 25 if the video doesn't say."""
    with _capture(str(path)) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
        return rate if math.isfinite(rate) and rate > 0 else USUAL_RATE


def read_frames(source: Path | int) -> Iterator[Frame]:
    """The frames of a video, or of the camera with a number, (H, W, 3) in BGR, turned as the video says.

    Raises:
        UserError: the first can't be had.
    """
    name = f"camera {source}" if isinstance(source, int) else str(source)
    with _capture(source if isinstance(source, int) else name) as capture:
        there, frame = capture.read()
        if not there:
            raise UserError(f"{name}: no frame of it can be read; is it there, and not in use elsewhere?")
        while there:
            yield frame
            there, frame = capture.read()


class VideoFile:
    """A video that is written frame by frame under a temporary name, and renamed when it is whole.

    Args:
        path: ends with `.mp4`.
        rate: in frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self.part = path.with_name(f"{path.stem}{UNFINISHED}{path.suffix}")
        self.writer: Any = None
        self.frames = 0

    def write(self, image: Image.Image) -> None:
        """Appends a frame; all have the first one's size.

        Raises:
            UserError: the file can't be written.
        """
        # The codec cuts odd sizes.
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
        """Renames the file, or removes it if something failed; without a frame there is none."""
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
