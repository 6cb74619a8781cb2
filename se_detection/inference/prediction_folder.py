"""The output folder of predictions. It records each image at once, so that a stopped prediction can be resumed."""

import json
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from ..data.coco_files import is_detection
from ..data.coco_format import Entry, is_integer, is_number
from ..errors import UserError
from ..files import check_folder, parse_json, write_whole
from ..runs.run_folder import DETECTIONS

NOTES = "predictions.jsonl"
IMAGE_LIST = "images.json"
# Of the second detector.
COMPARED_DETECTIONS = "coco_instances_results_compared.json"
DRAWN_IMAGES, VIDEOS = "pictures", "videos"
DRAWINGS = (f"{DRAWN_IMAGES}/[0-9]*_*.jpg*", f"{DRAWN_IMAGES}/[0-9]*_*_gates.png*", f"{VIDEOS}/[0-9]*_*.mp4")
WRITTEN = (DETECTIONS, COMPARED_DETECTIONS, IMAGE_LIST, *DRAWINGS, NOTES)


class PredictionFolder:
    """Appends a line to `predictions.jsonl` for each finished image or frame; writes the results in COCO's formats.

    The first line of the file records the detectors and options. Paths in the file are never opened.

    Args:
        path: the folder; nothing is written before :meth:`opened`.
        made_by: the weights and options of the predictions, as JSON; `weights` has an entry for each detector.
        categories: the category ids of the detectors.
        overwrite: replace existing predictions; otherwise they are resumed.

    Raises:
        UserError: the folder has predictions of other detectors or options, damaged ones, or other files with the same
            names.
    """

    def __init__(self, path: Path, *, made_by: Entry, categories: Container[int], overwrite: bool = False) -> None:
        self.path = path
        self.made_by = made_by
        self.categories = categories
        self.notes = path / NOTES
        self.finished: set[str] = set()
        # For each video, the number of finished frames, and the id of its first frame.
        self.frames: Counter[str] = Counter()
        self.first_frames: dict[str, int] = {}
        self.images = 0
        self._kept = 0
        self._check()
        if self.notes.is_file() and not overwrite:
            self._read_progress()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within the context, images and frames can be added; removes replaced files first, empty folders last.

        Raises:
            UserError: the folder can't be created.
        """
        folders = [self.path / name for name in (DRAWN_IMAGES, VIDEOS)]
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{error.filename} can't be created ({error.strerror}); choose another --output") from error
        if not self._kept:
            for path in self._written():
                path.unlink()
        with self.notes.open("ab") as self._file:
            # Drop an incomplete last line.
            self._file.truncate(self._kept)
            if not self._kept:
                self._append({"made_by": self.made_by})
            yield
        for folder in folders:
            if not any(folder.iterdir()):
                folder.rmdir()

    def add_image(self, file: str, size: tuple[int, int], detections: Sequence[list[Entry]]) -> None:
        """Adds an image: its width and height, and the detections of each detector."""
        self._add({"file_name": file}, size, detections)
        self.finished.add(file)

    def add_frame(self, file: str, size: tuple[int, int], detections: Sequence[list[Entry]]) -> None:
        """Adds the next frame of a video."""
        self.first_frames.setdefault(file, self.images + 1)
        self._add({"file_name": file, "frame": self.frames[file]}, size, detections)
        self.frames[file] += 1

    def finish_video(self, file: str) -> None:
        """Records that a video has no more frames."""
        self._append({"finished": file})
        self.finished.add(file)

    def frame_detections(self, file: str) -> Iterator[list[list[Entry]]]:
        """The detections of each detector in the finished frames of a video, in order."""
        return (note["detections"] for note in self._read() if note["image"]["file_name"] == file)

    def write_results(self, categories: dict[int, str], detectors: int) -> list[Path]:
        """Writes the results of each detector, and the list of images; returns the paths.

        Args:
            categories: names by id.
            detectors: number of detectors.
        """
        names = [{"id": id_, "name": name} for id_, name in categories.items()]
        content = {"images": [note["image"] for note in self._read()], "categories": names}
        paths = [self.path / name for name in (DETECTIONS, COMPARED_DETECTIONS)[:detectors]]
        for number, path in enumerate(paths):
            write_whole(path, partial(self._write_detections, number))
        write_whole(self.path / IMAGE_LIST, lambda file: file.write(json.dumps(content, indent=1).encode() + b"\n"))
        return [*paths, self.path / IMAGE_LIST]

    def _write_detections(self, detector: int, file: BinaryIO) -> None:
        # One by one: the results of a long video may not fit in memory.
        file.write(b"[")
        separator = b"\n"
        for note in self._read():
            for entry in note["detections"][detector]:
                file.write(separator + json.dumps(entry).encode())
                separator = b",\n"
        file.write(b"\n]\n")

    def _add(self, image: Entry, size: tuple[int, int], detections: Sequence[list[Entry]]) -> None:
        self.images += 1
        numbered = {"id": self.images, **image, "width": size[0], "height": size[1]}
        self._append({"image": numbered, "detections": list(detections)})

    def _append(self, note: Entry) -> None:
        self._file.write(json.dumps(note).encode() + b"\n")
        self._file.flush()

    def _read(self) -> Iterator[Entry]:
        """The lines of images and frames."""
        with self.notes.open("rb") as file:
            for line in file:
                note = json.loads(line)
                if "image" in note:
                    yield note

    def _check(self) -> None:
        check_folder(self.path)
        existing = self._written()
        if existing and not self.notes.is_file():
            raise UserError(f"{existing[0]} already exists, but {NOTES} does not; choose another --output")

    def _read_progress(self) -> None:
        made_by = None
        with self.notes.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._kept += len(line)
                try:
                    note = parse_json(line)
                    if made_by is None:
                        made_by = dict(note["made_by"])
                        self._check_made_by(made_by)
                    else:
                        self._count(note)
                except UserError:
                    raise
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    raise UserError(f"{self.notes} is damaged; replace the predictions with --overwrite") from error

    def _check_made_by(self, made_by: Entry) -> None:
        if made_by != self.made_by:
            raise UserError(
                f"{self.path} has predictions with {_text(made_by)}, not with {_text(self.made_by)}; choose another "
                "--output, or replace them with --overwrite"
            )

    def _count(self, note: Entry) -> None:
        """Raises ValueError, TypeError or the like if the line is invalid."""
        if "finished" in note:
            self.finished.add(note["finished"])
            return
        image, detections = note["image"], note["detections"]
        self.images, file = self.images + 1, image["file_name"]
        is_image = image["id"] == self.images and image.get("frame", self.frames[file]) == self.frames[file]
        if not is_image or not all(is_integer(image[side]) for side in ("width", "height")):
            raise ValueError(image)
        valid = all(is_drawable(item) and item["category_id"] in self.categories for item in chain(*detections))
        if len(detections) != len(self.made_by["weights"]) or not valid:
            raise ValueError(detections)
        if "frame" in image:
            self.frames[file] += 1
            self.first_frames.setdefault(file, image["id"])
        else:
            self.finished.add(file)

    def _written(self) -> list[Path]:
        return [path for pattern in WRITTEN for path in sorted(self.path.glob(pattern))]


def is_drawable(item: Any) -> bool:
    """Whether a value is a detection, with a mask and keypoints that can be drawn if it has them."""
    if not is_detection(item):
        return False
    code, points = item.get("segmentation", {"size": None, "counts": ""}), item.get("keypoints", [])
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str) or not code["counts"].isascii():
        return False
    return isinstance(points, list) and len(points) % 3 == 0 and all(map(is_number, points))


def _text(made_by: Entry) -> str:
    texts = {key: " and ".join(map(str, value)) if isinstance(value, list) else value for key, value in made_by.items()}
    return ", ".join(f"{key} {text}" for key, text in texts.items())
