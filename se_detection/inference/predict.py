"""Detects objects in images, videos or a camera, and draws them; a stopped prediction can be resumed."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..data.coco_format import Entry
from ..engine.signals import Interrupted, RankMaximum, StopRequest
from ..errors import UserError, counted
from ..files import write_whole
from ..gates.excitations import Excitations
from ..gates.heat_map import energy_maps, measure_effect
from ..visualization.drawing import class_colours, draw_boxes, side_by_side
from .detector import Detector
from .image_array import image_array
from .inputs import CAMERA, find_camera, find_files, is_video, unreadable
from .prediction_folder import DRAWN_IMAGES, VIDEOS, PredictionFolder
from .video import VideoFile, read_frames, video_info

# The longer side, in pixels, of each of two images side by side; a single image keeps its size.
PANEL = 1280
# Limit of JPEG, in pixels.
LONGEST = 65500
JPEG_QUALITY = 92
# The maximum length of an input's name in an output's name.
STEM = 60
# What is counted.
IMAGES = ("image or frame", "images and frames")
# Frames per second of a camera's video.
CAMERA_RATE = 10.0


@dataclass(frozen=True)
class Prediction:
    """The written paths, the number of images and frames, and the files that were not used.

    Args:
        unreadable: the images and videos that could not be read, with the reason.
        skipped: the other files in the folders.
    """

    written: list[Path]
    images: int
    unreadable: dict[Path, str]
    skipped: list[Path]


def predict(
    inputs: Sequence[str],
    detectors: Sequence[Detector],
    output: Path,
    *,
    score: float = 0.5,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    gates: Excitations | None = None,
) -> Prediction:
    """Draws the detections of one detector, or of two side by side, and writes them in COCO's results format.

    The results have boxes and, if the detector has them, masks (`segmentation`, run-length encoded) and `keypoints`.

    The output folder has:
        - `pictures/<number>_<name>.jpg` and `videos/<number>_<name>.mp4`: the drawings;
        - `coco_instances_results.json`, and `coco_instances_results_compared.json` for a second detector;
        - `images.json`: the `images` (id, size, absolute path as `file_name`, and for videos the `frame`, counted from
          0) and `categories` of the results;
        - `predictions.jsonl`: the progress, to resume a stopped prediction.

    Images are rotated by their EXIF orientation, as in detectron2.

    Args:
        inputs: files, folders, patterns, or `camera:N`, which is recorded until a signal stops it.
        detectors: one or two.
        output: the folder.
        score: draw detections with at least this score; the results have all detections that the run's config keeps.
        overwrite: replace existing predictions; otherwise finished images are skipped, if detectors and score are the
            same.
        skip_bad_images: skip unreadable files; otherwise they are an error before anything is written.
        gates: of the first detector: also draw a heat map of their effect on each image (not on videos), as
            `pictures/<number>_<name>_gates.png`.

    Raises:
        UserError: an argument or input is invalid, `output` has other predictions, or the detectors have different
            classes.
        Interrupted: a signal stopped it; progress is saved.
    """
    if not 0 <= score <= 1:
        raise UserError("predict.score", f"--score {score}: give a number from 0 to 1")
    categories = _common_categories(detectors)
    made_by = {"weights": [f"{d.weights.name} {d.fingerprint[:16]}" for d in detectors], "score": score}
    made_by |= {"gates": "drawn"} if gates is not None else {}
    folder = PredictionFolder(output, made_by=made_by, overwrite=overwrite)
    camera = find_camera(inputs)
    if camera is not None and folder.images:
        raise UserError(
            "predict.no_resume",
            f"{output} already has predictions, and a recording of {inputs[0]} can't be resumed; choose another "
            "--output, or replace them with --overwrite",
        )
    files, skipped = find_files(inputs, outside=output) if camera is None else ([], [])
    files = [file for file in files if str(file) not in folder.finished]
    bad = unreadable(files)
    if bad and not (skip_bad_images and len(bad) < len(files)):
        path, reason = next(iter(bad.items()))
        raise UserError(
            "predict.unreadable",
            f"{len(bad)} of {counted(len(files), 'file')} can't be read, first {path}: {reason}; fix or remove them, "
            "or skip them with --skip-bad-images if there are others",
        )
    files = [file for file in files if file not in bad]

    # Read the first frame before anything is written: the camera may be missing.
    live = read_frames(camera) if camera is not None else iter(())
    live = chain(list(islice(live, 1)), live)
    videos = {file: info for file in files if is_video(file) and (info := video_info(file))}
    total = len(files) - len(videos) + sum(count for count, _ in videos.values()) if camera is None else None
    stop = StopRequest(RankMaximum())
    with folder.opened(), tqdm(desc="detecting", total=total, unit="image", disable=None) as bar, stop.listening():
        job = _Job(detectors, folder, score, gates, stop, bar)
        try:
            if camera is not None:
                job.record(camera, live)
            for file in files:
                try:
                    if file not in videos:
                        job.detect_in_image(file)
                        continue
                    count, rate = videos[file]
                    if (read := job.detect_in_video(file, rate)) < count:
                        bad[file] = f"only the first {read} of {counted(count, 'frame')} can be decoded"
                except UserError as error:
                    if not skip_bad_images:
                        raise UserError(error.code, f"{file}: {error.message}") from error
                    bad[file] = error.message
        except Interrupted as request:
            bar.close()
            name, done = Signals(int(request.code or 0) - 128).name, counted(len(folder.images), *IMAGES)
            print(f"{name}: stopped after {done}; run the same command to resume", file=sys.stderr)
            raise
    results = folder.write_results(categories)
    drawings = [path for name in (DRAWN_IMAGES, VIDEOS) if (path := output / name).is_dir()]
    return Prediction([*drawings, *results], len(folder.images), bad, skipped)


def _common_categories(detectors: Sequence[Detector]) -> dict[int, str]:
    first, *others = detectors
    for other in others:
        if list(other.categories.values()) != list(first.categories.values()):
            raise UserError(
                "predict.other_classes",
                f"{first.weights} and {other.weights} have different classes ({', '.join(first.categories.values())}; "
                f"{', '.join(other.categories.values())}); compare detectors with the same classes",
            )
        # The ids of the data set may be known for only one of the runs.
        other.categories = first.categories
    return first.categories


@dataclass(frozen=True)
class _Job:
    detectors: Sequence[Detector]
    folder: PredictionFolder
    score: float
    gates: Excitations | None
    stop: StopRequest
    bar: "tqdm[Any]"

    def detect_in_image(self, file: Path) -> None:
        self.stop.raise_if_any()
        pixels = image_array(file, "BGR", "BGR")
        detections = self._detect(pixels)
        path = self._path(DRAWN_IMAGES, len(self.folder.images) + 1, file, ".jpg")
        sheet = self._draw(pixels, detections)
        write_whole(path, partial(sheet.save, format="JPEG", quality=JPEG_QUALITY, subsampling=0))
        if self.gates is not None and (effect := measure_effect(self.gates, file)).energy:
            figure = energy_maps(effect, _image(pixels))
            png = path.with_name(f"{path.stem}_gates.png")
            write_whole(png, partial(figure.savefig, format="png", bbox_inches="tight"))
        self._add({"file_name": str(file)}, pixels, detections)

    def detect_in_video(self, file: Path, rate: float) -> int:
        """Returns the number of frames; the video of a stopped run is drawn again from its recorded detections."""
        name = str(file)
        done = self.folder.frames(name)
        finished = islice(self.folder.detections(name), len(done))
        number = done[0]["id"] if done else len(self.folder.images) + 1
        with VideoFile(self._path(VIDEOS, number, file, ".mp4"), rate) as video:
            for frame in read_frames(file):
                self.stop.raise_if_any()
                if video.frames < len(done):
                    detections = next(finished)
                    self.bar.update()
                else:
                    detections = self._detect(frame)
                    self._add({"file_name": name, "frame": video.frames}, frame, detections)
                video.write(self._draw(frame, detections))
        self.folder.finish_video(name)
        return video.frames

    def record(self, camera: int, live: Iterator[NDArray[np.uint8]]) -> None:
        """Records until a signal. Frames are repeated so that the video has the duration of the recording."""
        started = time.monotonic()
        with VideoFile(self._path(VIDEOS, 1, Path(f"camera_{camera}"), ".mp4"), CAMERA_RATE) as video:
            for number, frame in enumerate(live):
                detections = self._detect(frame)
                self._add({"file_name": f"{CAMERA}{camera}", "frame": number}, frame, detections)
                sheet = self._draw(frame, detections)
                missing = round((time.monotonic() - started) * CAMERA_RATE) - video.frames
                for _ in range(max(missing, 1)):
                    video.write(sheet)
                if self.stop.received:
                    return

    def _detect(self, pixels: NDArray[np.uint8]) -> list[list[Entry]]:
        return [detector(pixels, len(self.folder.images) + 1) for detector in self.detectors]

    def _add(self, image: Entry, pixels: NDArray[np.uint8], detections: list[list[Entry]]) -> None:
        self.folder.add({**image, "width": pixels.shape[1], "height": pixels.shape[0]}, detections)
        self.bar.update()

    def _draw(self, pixels: NDArray[np.uint8], detections: list[list[Entry]]) -> Image.Image:
        names = self.detectors[0].categories
        colours = class_colours(names)
        panels = []
        for entries in detections:
            shown = [entry for entry in entries if entry["score"] >= self.score]
            longest = PANEL if len(detections) > 1 else LONGEST
            panels.append(draw_boxes(_image(pixels), shown, names, colours, longest=longest))
        titles = [detector.name for detector in self.detectors]
        if len(set(titles)) < len(titles):
            titles = [str(detector.weights) for detector in self.detectors]
        return side_by_side(panels, titles) if len(panels) > 1 else panels[0]

    def _path(self, kind: str, number: int, source: Path, suffix: str) -> Path:
        folder = self.folder.path / kind
        folder.mkdir(exist_ok=True)
        return folder / f"{number:05d}_{source.stem[:STEM]}{suffix}"


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))
