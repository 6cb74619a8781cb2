"""The output folder of predictions. It records each image at once, so that a stopped prediction can be resumed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ..data.coco_format import Entry
from ..errors import UserError
from ..files import check_folder, parse_json, write_json, write_whole
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
        overwrite: replace existing predictions; otherwise they are resumed.

    Raises:
        UserError: the folder has predictions of other detectors or options, damaged ones, or other files with the same
            names.
    """

    def __init__(self, path: Path, *, made_by: Entry, overwrite: bool = False) -> None:
        self.path = path
        self.made_by = made_by
        self.notes = path / NOTES
        # COCO's entries of the finished images and frames; and the paths of finished images and whole videos.
        self.images: list[Entry] = []
        self.finished: set[str] = set()
        self._kept = 0
        check_folder(path)
        existing = self._written()
        if existing and not self.notes.is_file():
            raise UserError(
                "output.exists", f"{existing[0]} already exists, but {NOTES} does not; choose another --output"
            )
        if existing and not overwrite:
            self._read_progress()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within the context, images and frames can be added; replaced files are removed first."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._kept:
            for path in self._written():
                path.unlink()
        with self.notes.open("ab") as self._file:
            # Drop an incomplete last line.
            self._file.truncate(self._kept)
            if not self._kept:
                self._append({"made_by": self.made_by})
            yield

    def add(self, image: Entry, detections: list[list[Entry]]) -> None:
        """Adds an image or frame: its `file_name`, `frame` (of a video), `width`, `height`, and each detector's result.

        Its id is the number of images and frames so far.
        """
        self.images.append({"id": len(self.images) + 1, **image})
        self._append({"image": self.images[-1], "detections": detections})
        if "frame" not in image:
            self.finished.add(image["file_name"])

    def finish_video(self, file: str) -> None:
        """Records that a video has no more frames."""
        self._append({"finished": file})
        self.finished.add(file)

    def frames(self, file: str) -> list[Entry]:
        """The entries of the finished frames of a video."""
        return [image for image in self.images if image["file_name"] == file]

    def detections(self, file: str | None = None) -> Iterator[list[list[Entry]]]:
        """The detections of each detector in each image and frame (of one file), in order.

        They are read one by one: those of a long video may not fit in memory.
        """
        with self.notes.open("rb") as notes:
            for note in map(json.loads, notes):
                if "image" in note and file in (None, note["image"]["file_name"]):
                    yield note["detections"]

    def write_results(self, categories: dict[int, str]) -> list[Path]:
        """Writes the results of each detector, and the images and categories (names by id); returns the paths."""
        paths = [self.path / name for name in (DETECTIONS, COMPARED_DETECTIONS)[: len(self.made_by["weights"])]]
        for number, path in enumerate(paths):
            write_whole(path, partial(self._write_detections, number))
        names = [{"id": id_, "name": name} for id_, name in categories.items()]
        write_json(self.path / IMAGE_LIST, {"images": self.images, "categories": names}, indent=1)
        return [*paths, self.path / IMAGE_LIST]

    def _write_detections(self, detector: int, file: BinaryIO) -> None:
        separator = b"["
        for detections in self.detections():
            for entry in detections[detector]:
                file.write(separator + b"\n" + json.dumps(entry).encode())
                separator = b","
        file.write(b"[]\n" if separator == b"[" else b"\n]\n")

    def _append(self, note: Entry) -> None:
        self._file.write(json.dumps(note).encode() + b"\n")
        self._file.flush()

    def _read_progress(self) -> None:
        with self.notes.open("rb") as file:
            for number, line in enumerate(file):
                # A killed process may leave half a line.
                if not line.endswith(b"\n"):
                    break
                self._kept += len(line)
                try:
                    self._read_note(parse_json(line), first=number == 0)
                except UserError:
                    raise
                except (ValueError, LookupError, TypeError) as error:
                    raise UserError(
                        "predict.damaged", f"{self.notes} is damaged; replace the predictions with --overwrite"
                    ) from error

    def _read_note(self, note: Entry, *, first: bool) -> None:
        if first:
            if note["made_by"] != self.made_by:
                raise UserError(
                    "predict.other_detector",
                    f"{self.path} has predictions with {json.dumps(note['made_by'])}, not with "
                    f"{json.dumps(self.made_by)}; choose another --output, or replace them with --overwrite",
                )
        elif "finished" in note:
            self.finished.add(note["finished"])
        else:
            self.images.append(note["image"])
            if "frame" not in note["image"]:
                self.finished.add(note["image"]["file_name"])

    def _written(self) -> list[Path]:
        return [path for pattern in WRITTEN for path in sorted(self.path.glob(pattern))]
