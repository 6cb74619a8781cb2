"""One or two detectors for images that arrive as bytes, one at a time."""

import base64
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from se_detection.data.image_files import reason, refuse_deep
from se_detection.errors import UserError
from se_detection.files import file_digest
from se_detection.gates.heat_map import energy_maps, measure_effect
from se_detection.gates.recorder import se_gates
from se_detection.inference.image_array import image_array
from se_detection.inference.predictor import SEPredictor
from se_detection.visualization.drawing import class_colours

from .mean_gates import read_mean_gates

# The longer side, in pixels, of what the page shows.
SHOWN = 1600
JPEG_QUALITY = 90
# Pillow has decoders of many more, for strangers to try.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


class Detectors:
    """What one run finds, or two, and what their gates do.

    Args:
        runs: folders of tools/train_net.py.
        weights: a checkpoint for the first; by default each one's newest.
        fuse: make them faster by :func:`se_detection.export.fuse_for_inference`.

    Raises:
        UserError: a folder is no run's, its weights don't fit, or its model finds no boxes.
    """

    def __init__(self, runs: Sequence[Path], weights: Path | None = None, *, fuse: bool = False) -> None:
        chosen = [weights, *[None] * (len(runs) - 1)]
        self.runs = list(runs)
        self.predictors = [SEPredictor.from_run(run, file, fuse=fuse) for run, file in zip(runs, chosen, strict=True)]
        names = [run.resolve().name for run in runs]
        self.names = names if len({*names}) == len(names) else [str(run) for run in runs]
        # The files may change while their content is in memory.
        self.made_of = [
            {"weights": file_digest(predictor.weights), "config": file_digest(run / "config.yaml")}
            for run, predictor in zip(runs, self.predictors, strict=True)
        ]
        classes = dict.fromkeys(name for predictor in self.predictors for name in predictor.classes)
        colours = class_colours(dict(enumerate(classes))).values()
        # As CSS has them.
        self.colours = {name: f"rgb{colour}" for name, colour in zip(classes, colours, strict=True)}
        # A model keeps things of the image that it is at (padding, hooks on gates).
        self._lock = Lock()
        for predictor in self.predictors:
            # The first forward pass takes longer than others.
            predictor(np.zeros((64, 64, 3), np.uint8))

    def has_gates(self, number: int) -> bool:
        """Whether a run's model has SE gates to look at; one that was made faster has none."""
        return not self.predictors[number].fused and bool(se_gates(self.predictors[number].model))

    def detect(self, data: bytes) -> dict[str, Any]:
        """All boxes that the runs' configs let through, and the image as they saw it.

        Returns:
            `width` and `height` in pixels as the EXIF data turns them; `image`, a JPEG of that (data URL), reduced
            if it is large; for each of `runs`, `seconds` of resizing and the forward pass, and `boxes`, the surest
            first: `class`, `score`, `box` (x0, y0, x1, y1).

        Raises:
            UserError: it is no image, is too large, or too long and thin.
        """
        with self._lock:
            pixels = _read(data)
            runs = [_find(predictor, pixels) for predictor in self.predictors]
            image = _image(pixels)
            width, height = image.size
            image.thumbnail((SHOWN, SHOWN))
            file = BytesIO()
            image.save(file, "jpeg", quality=JPEG_QUALITY)
        return {"width": width, "height": height, "image": _data_url("jpeg", file.getvalue()), "runs": runs}

    def gate_map(self, number: int, data: bytes) -> dict[str, Any]:
        """Where a run's gates change an image's features, compared with their mean.

        Returns:
            `image`, a PNG (data URL), and `images`, over how many the mean is.

        Raises:
            UserError: as above; or the mean gates are not there, and how to find them.
        """
        predictor = self.predictors[number]
        with self._lock:
            found = read_mean_gates(self.runs[number], predictor, self.made_of[number])
            pixels = _read(data)
            effect = measure_effect(found, predictor.entry(pixels, "BGR"))
            if not effect.energy:
                raise UserError("the backbone has no SE gates, of which alone there is a map")
            image = _image(pixels)
            # matplotlib takes memory and time for every pixel that it is given, in each panel.
            image.thumbnail((SHOWN, SHOWN))
            drawn = BytesIO()
            energy_maps(effect, image).savefig(drawn, format="png", bbox_inches="tight")
        images = int(next(iter(found.statistics.values())).images[-1])
        return {"image": _data_url("png", drawn.getvalue()), "images": images}


def _read(data: bytes) -> NDArray[np.uint8]:
    """In BGR."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        refuse_deep(image)
    except UnidentifiedImageError as error:
        raise UserError("this is no image that can be read; send JPEG, PNG, WebP, BMP or GIF") from error
    except Exception as error:  # of any class: see `image_files.decode`
        raise UserError(f"the image can't be used: {reason(error)}; send another") from error
    with image:
        return image_array(image, "BGR", "BGR")


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))


def _find(predictor: SEPredictor, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    started = time.perf_counter()
    found = predictor(pixels)
    seconds = time.perf_counter() - started
    boxes = zip(found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True)
    entries = [{"class": predictor.classes[number], "score": score, "box": box} for number, score, box in boxes]
    return {"seconds": seconds, "boxes": entries}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
