"""One or two detectors, and the maps of their gates, for images that arrive as bytes."""

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
from se_detection.runs.run_folder import CONFIG
from se_detection.visualization.drawing import class_colours

from .mean_gates import read_mean_gates

# The longer side of shown images, in pixels.
SHOWN_SIZE = 1600
JPEG_QUALITY = 90
# Only these decoders of Pillow are used: images come from strangers.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


class Detectors:
    """The detectors of one or two runs.

    Args:
        runs: run folders of `se-det train`.
        weights: a checkpoint for the first run; by default the newest.
        fuse: apply :func:`se_detection.fuse_for_inference`.

    Raises:
        UserError: a folder is not a run folder, the weights don't fit, or the model does not detect boxes.
    """

    def __init__(self, runs: Sequence[Path], weights: Path | None = None, *, fuse: bool = False) -> None:
        chosen = [weights, *[None] * (len(runs) - 1)]
        self.runs = list(runs)
        self.predictors = [SEPredictor.from_run(run, file, fuse=fuse) for run, file in zip(runs, chosen, strict=True)]
        names = [run.resolve().name for run in runs]
        self.names = names if len({*names}) == len(names) else [str(run) for run in runs]
        # The files may change after loading.
        self.made_of = [
            {"weights": file_digest(predictor.weights), "config": file_digest(run / CONFIG)}
            for run, predictor in zip(runs, self.predictors, strict=True)
        ]
        classes = dict.fromkeys(name for predictor in self.predictors for name in predictor.classes)
        colours = class_colours(dict(enumerate(classes))).values()
        # In CSS.
        self.colours = {name: f"rgb{colour}" for name, colour in zip(classes, colours, strict=True)}
        # A model keeps state of the current image (padding, hooks on gates).
        self._lock = Lock()
        for predictor in self.predictors:
            # Warm-up: the first forward pass is slower.
            predictor(np.zeros((64, 64, 3), np.uint8))

    def has_gates(self, number: int) -> bool:
        """Whether a run's model has SE gates; a fused model has none."""
        return not self.predictors[number].fused and bool(se_gates(self.predictors[number].model))

    def detect(self, data: bytes) -> dict[str, Any]:
        """Detects the boxes of an image with all runs; the score thresholds are those of their configs.

        Returns:
            `width` and `height` in pixels, after rotation by EXIF; `image`, a JPEG data URL, reduced if it is large;
            for each of `runs`, `seconds` of resizing and the forward pass, and `boxes` by falling score: `class`,
            `score`, `box` (x0, y0, x1, y1).

        Raises:
            UserError: the data is not an image, or the image is too large, or too long and thin.
        """
        with self._lock:
            pixels = _read(data)
            runs = [_detect(predictor, pixels) for predictor in self.predictors]
            image = _image(pixels)
            width, height = image.size
            image.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
            file = BytesIO()
            image.save(file, "jpeg", quality=JPEG_QUALITY)
        return {"width": width, "height": height, "image": _data_url("jpeg", file.getvalue()), "runs": runs}

    def gate_map(self, number: int, data: bytes) -> dict[str, Any]:
        """A map of the changes in an image's features by a run's gates, compared with their mean.

        Returns:
            `image`, a PNG data URL, and `images`, the number of images of the mean.

        Raises:
            UserError: as :meth:`detect`; or there are no mean gates.
        """
        predictor = self.predictors[number]
        with self._lock:
            means = read_mean_gates(self.runs[number], predictor, self.made_of[number])
            pixels = _read(data)
            effect = measure_effect(means, predictor.entry(pixels, "BGR"))
            if not effect.energy:
                raise UserError("the backbone has no SE gates, so there is no map")
            image = _image(pixels)
            # matplotlib's memory and time grow with the pixels of each panel.
            image.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
            drawn = BytesIO()
            energy_maps(effect, image).savefig(drawn, format="png", bbox_inches="tight")
        images = int(next(iter(means.statistics.values())).images[-1])
        return {"image": _data_url("png", drawn.getvalue()), "images": images}


def _read(data: bytes) -> NDArray[np.uint8]:
    """Decodes an image to BGR."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        refuse_deep(image)
    except UnidentifiedImageError as error:
        raise UserError("this file is not a readable image; send JPEG, PNG, WebP, BMP or GIF") from error
    except Exception as error:  # of any class: see `image_files.decode`
        raise UserError(f"the image can't be used: {reason(error)}; send another") from error
    with image:
        return image_array(image, "BGR", "BGR")


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))


def _detect(predictor: SEPredictor, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    started = time.perf_counter()
    instances = predictor(pixels)
    seconds = time.perf_counter() - started
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    boxes = zip(classes, scores, instances.pred_boxes.tensor.tolist(), strict=True)
    entries = [{"class": predictor.classes[number], "score": score, "box": box} for number, score, box in boxes]
    return {"seconds": seconds, "boxes": entries}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
