"""Reads and writes videos and reads cameras, frame by frame, with OpenCV."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Self

from ..errors import UserError
from ..files import UNFINISHED

# MPEG-4, which all builds of OpenCV can write.
CODEC = "mp4v"
USUAL_RATE = 25.0


def video_info(path: Path) -> tuple[int, float] | None:
    """Number of frames (0 if unknown) and frames per second (25 if unknown); None if no frame can be decoded."""
    capture = cv2.VideoCapture(str(path))
    if not capture.read()[0]:
        return None
    number, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    known = [value if math.isfinite(value) and value > 0 else 0 for value in (number, rate)]
    return int(known[0]), known[1] or USUAL_RATE


def read_frames(source: Path | int) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames of a video, or of the camera with this number: (H, W, 3) in BGR, rotated by its metadata.

    Raises:
        UserError: the first frame can't be read.
    """
    camera = isinstance(source, int)
    capture = cv2.VideoCapture(source if camera else str(source))
    success, frame = capture.read()
    if not success:
        name = f"camera {source}" if camera else source
        raise UserError(
            "predict.no_frame",
            f"{name}: no frame can be read; check that it is connected or exists, and is not in use",
        )
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
        """Appends a frame, of the same size as the first one; its last row and column are repeated to an even size.

        Raises:
            UserError: the file can't be written.
        """
        frame = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
        frame = cv2.copyMakeBorder(frame, 0, image.height % 2, 0, image.width % 2, cv2.BORDER_REPLICATE)
        if self.writer is None:
            size = frame.shape[1::-1]
            self.writer = cv2.VideoWriter(str(self.part), cv2.VideoWriter.fourcc(*CODEC), self.rate, size)
            if not self.writer.isOpened():
                raise UserError(
                    "predict.no_codec", f"{self.path}: OpenCV can't write this video ({CODEC}, {size[0]}x{size[1]})"
                )
        self.writer.write(frame)
        self.frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Renames the file, or removes it after an error; without frames there is no file."""
        if self.writer is not None:
            self.writer.release()
            if failure is None:
                self.part.replace(self.path)
        self.part.unlink(missing_ok=True)
