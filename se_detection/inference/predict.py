"""Detects in images, videos or a camera, and draws what is found; can be stopped at any moment, and goes on."""

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
from detectron2.data.detection_utils import read_image
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..data.coco_format import Entry
from ..data.image_files import reason
from ..engine.signals import Interrupted, RankMaximum, StopRequest
from ..errors import UserError
from ..files import write_whole
from ..gates.excitations import Excitations
from ..gates.heat_map import energy_maps, measure_effect
from ..visualization.drawing import class_colours, draw_boxes, side_by_side
from .detector import Detector
from .inputs import CAMERA, find_camera, find_files, is_video, unreadable
from .prediction_folder import IMAGES, VIDEOS, PredictionFolder
from .video import VideoFile, count_frames, frame_rate, read_frames

# The longer side, in pixels, of each of two images side by side; a single one stays as large as it is.
PANEL = 1280
# JPEG has no larger ones.
LONGEST = 65500
JPEG_QUALITY = 92
# A file name has room for that much of another's, in whatever script.
STEM = 60
# Frames per second of a camera's video: how many are looked at depends on the machine.
CAMERA_RATE = 10.0


@dataclass(frozen=True)
class Prediction:
    """What was done: the paths that were written, the number of images and frames, and what could not be read."""

    written: list[Path]
    images: int
    unreadable: dict[Path, str]


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
    """Draws what one detector finds, or two side by side, and writes all that they find in COCO's results format.

    That is boxes, and the masks (`segmentation`, a run-length code) and `keypoints` of detectors that find them.

    Written: `pictures/<number>_<name>.jpg`; `videos/<number>_<name>.mp4`; `coco_instances_results.json`, and
    `coco_instances_results_compared.json` of the second detector; `images.json`, whose `images` have the numbers that
    the results refer to, the absolute paths (`file_name`; a video's frames have `frame` too, counted from 0) and sizes,
    and whose `categories` have names; `predictions.jsonl`, from which a prediction that was stopped goes on. Images
    are turned as their EXIF data says, as detectron2 does.

    Args:
        inputs: files, folders, patterns, or `camera:N`, which is recorded until a signal stops it.
        detectors: one or two.
        output: the folder.
        score: what is drawn has that or more; the results have all that the run's config lets through.
        overwrite: replace what is in the folder; otherwise images that are done are passed over, if the detectors and
            the score are the same.
        gates: of the first detector; a heat map of what its gates do is drawn beside each image, videos left out, as
            `pictures/<number>_<name>_gates.png`.
        skip_bad_images: leave out files that can't be read; otherwise nothing is done if there are any.

    Raises:
        UserError: see above; or the detectors know different classes.
        Interrupted: a signal asked to stop; what was done is noted.
    """
    if not 0 <= score <= 1:
        raise UserError(f"--score {score}: it is not from 0 to 1")
    categories = _common_categories(detectors)
    made_by = {"weights": [f"{d.weights.name} {d.fingerprint[:16]}" for d in detectors], "score": score}
    made_by |= {"gates": "drawn"} if gates is not None else {}
    folder = PredictionFolder(output, made_by, categories, overwrite=overwrite)
    camera = find_camera(inputs)
    if camera is not None and folder.images:
        raise UserError(
            f"{output} holds predictions already, and {inputs[0]} shows something else now; choose another --output, "
            "or replace them with --overwrite"
        )
    files = find_files(inputs, outside=output) if camera is None else []
    files = [file for file in files if str(file) not in folder.finished]
    bad = _unreadable(files, skip_bad_images)
    files = [file for file in files if file not in bad]

    # Nothing is written for a camera that is not there.
    live = read_frames(camera) if camera is not None else iter(())
    live = chain(list(islice(live, 1)), live)
    videos = {file: count_frames(file) or 0 for file in files if is_video(file)}
    total = len(files) - len(videos) + sum(videos.values()) if camera is None else None
    stop = StopRequest(RankMaximum())
    with folder.opened(), tqdm(desc="detecting", total=total, unit="image") as bar, stop.listening():
        work = _Work(detectors, categories, folder, score, gates, stop, bar)
        try:
            if camera is not None:
                work.record(camera, live)
            for file in files:
                if file in videos:
                    if (read := work.detect_in_video(file)) < videos[file]:
                        bad[file] = f"only the first {read} of {videos[file]} frames can be decoded"
                    continue
                try:
                    work.detect_in_image(file)
                except UserError as error:
                    if not skip_bad_images:
                        raise UserError(f"{file}: {error}") from error
                    bad[file] = str(error)
        except Interrupted as request:
            bar.close()
            done = f"{Signals(int(request.code or 0) - 128).name}: stopped after {folder.images} images and frames"
            print(f"{done}; the same command goes on", file=sys.stderr)
            raise
    gathered = folder.gather(categories, len(detectors))
    drawn = [path for name in (IMAGES, VIDEOS) if (path := output / name).is_dir()]
    return Prediction([*drawn, *gathered], folder.images, bad)


def _unreadable(files: Sequence[Path], skip: bool) -> dict[Path, str]:
    bad = unreadable(files)
    if bad and not skip:
        path, reason = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(files)} files can't be read, the first of them {path}: {reason}; mend or remove them, "
            "or leave them out with --skip-bad-images"
        )
    if bad and len(bad) == len(files):
        raise UserError(f"{files[0]}: {bad[files[0]]}; nor can any other of the inputs be read")
    return bad


def _common_categories(detectors: Sequence[Detector]) -> dict[int, str]:
    first, *others = detectors
    for other in others:
        if list(other.categories.values()) != list(first.categories.values()):
            raise UserError(
                f"{first.weights} and {other.weights} know different classes ({', '.join(first.categories.values())}; "
                f"{', '.join(other.categories.values())}); compare detectors of the same ones"
            )
        # The data set's own ids may be known of one run alone.
        other.categories = first.categories
    return first.categories


class _Work:
    def __init__(
        self,
        detectors: Sequence[Detector],
        categories: dict[int, str],
        folder: PredictionFolder,
        score: float,
        gates: Excitations | None,
        stop: StopRequest,
        bar: "tqdm[Any]",
    ) -> None:
        self.detectors = detectors
        self.names = categories
        self.colours = class_colours(categories)
        self.folder = folder
        self.score = score
        self.gates = gates
        self.stop = stop
        self.bar = bar
        titles = [detector.name for detector in detectors]
        self.titles = titles if len(set(titles)) == len(titles) else [str(detector.weights) for detector in detectors]

    def detect_in_image(self, file: Path) -> None:
        self.stop.raise_if_any()
        try:
            pixels = read_image(str(file), "BGR")
        except Exception as error:  # of any class, if the file has changed since it was looked at
            raise UserError(f"it can't be read any more ({reason(error)})") from error
        found = self._detect(pixels)
        path = self._path(IMAGES, self.folder.images + 1, file, ".jpg")
        sheet = self._draw(pixels, found)
        write_whole(path, partial(sheet.save, format="JPEG", quality=JPEG_QUALITY, subsampling=0))
        if self.gates is not None:
            _draw_gates(self.gates, file, path.with_name(f"{path.stem}_gates.png"))
        self.folder.add_image(str(file), _size(pixels), found)
        self.bar.update()

    def detect_in_video(self, file: Path) -> int:
        """Returns the number of frames; those that are noted are only drawn again, as a video can't be appended to."""
        name = str(file)
        done = self.folder.frames[name]
        noted = islice(self.folder.frame_detections(name), done)
        path = self._path(VIDEOS, self.folder.first_frames.get(name, self.folder.images + 1), file, ".mp4")
        with VideoFile(path, frame_rate(file)) as video:
            for number, frame in enumerate(read_frames(file)):
                self.stop.raise_if_any()
                found = next(noted) if number < done else self._detect(frame)
                if number >= done:
                    self.folder.add_frame(name, _size(frame), found)
                video.write(self._draw(frame, found))
                self.bar.update()
        self.folder.finish_video(name)
        return video.frames

    def record(self, camera: int, live: Iterator[NDArray[np.uint8]]) -> None:
        """Until it is asked to stop; each image lasts until the next one, so that the video is as long as it took."""
        name = f"{CAMERA}{camera}"
        started = time.monotonic()
        with VideoFile(self._path(VIDEOS, 1, Path(f"camera_{camera}"), ".mp4"), CAMERA_RATE) as video:
            for frame in live:
                found = self._detect(frame)
                self.folder.add_frame(name, _size(frame), found)
                sheet = self._draw(frame, found)
                missing = round((time.monotonic() - started) * CAMERA_RATE) - video.frames
                for _ in range(max(missing, 1)):
                    video.write(sheet)
                self.bar.update()
                if self.stop.received:
                    return

    def _detect(self, pixels: NDArray[np.uint8]) -> list[list[Entry]]:
        return [detector(pixels, self.folder.images + 1) for detector in self.detectors]

    def _draw(self, pixels: NDArray[np.uint8], found: list[list[Entry]]) -> Image.Image:
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))
        longest = PANEL if len(found) > 1 else LONGEST
        panels = []
        for entries in found:
            sure = [entry for entry in entries if entry["score"] >= self.score]
            panels.append(draw_boxes(image, sure, self.names, self.colours, longest=longest))
        return side_by_side(panels, self.titles) if len(panels) > 1 else panels[0]

    def _path(self, kind: str, number: int, source: Path, suffix: str) -> Path:
        return self.folder.path / kind / f"{number:05d}_{source.stem[:STEM]}{suffix}"


def _size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[0]


def _draw_gates(gates: Excitations, file: Path, path: Path) -> None:
    effect = measure_effect(gates, file)
    # There is none where only the heads of a C4 detector have SE.
    if effect.energy:
        image = Image.fromarray(read_image(str(file), "RGB"))
        write_whole(path, partial(energy_maps(effect, image).savefig, format="png", bbox_inches="tight"))
