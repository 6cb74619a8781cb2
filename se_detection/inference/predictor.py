"""Runs a trained detector on single images or batches."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from torch import nn

from ..errors import UserError
from ..modeling.fuse.fuse_detector import fuse_for_inference
from ..runs.categories import run_categories
from ..runs.trained_run import TrainedRun, load_trained_run, read_run_config
from .detector_file import read_detector_file, write_detector_file
from .image_array import ImageInput, image_array

# Default batch size: a ResNet-50-FPN at 800 pixels takes some gigabytes.
BATCH_SIZE = 4


class SEPredictor:
    """Maps images to detectron2's `Instances`, on a GPU if there is one. Create it with :meth:`from_run` or
    :meth:`from_file`.

    An image is a path, a PIL image, or an (H, W, 3) array of uint8. Arrays are BGR as in detectron2's
    `DefaultPredictor`, or RGB with `channel_order="RGB"`; the wrong order is not detected, and lowers AP. Files and PIL
    images are rotated by their EXIF orientation and converted to 8-bit colour.

    For a single image the result is that of `DefaultPredictor`. A list is split into batches of `batch_size` images,
    which are padded to the same size. In detectron2 the detections in an image depend slightly on its batch; with
    `MODEL.SE.IGNORE_PADDING` or `batch_size=1` they do not (docs/PADDING.md).

    For the package `supervision`, use `supervision.Detections.from_detectron2({"instances": instances})`.

    Args:
        trained: the config, and the detector with its weights.
        categories: names by the data set's category id, in the model's order.
        fuse: make the detector faster with :func:`se_detection.fuse_for_inference`.
    """

    def __init__(self, trained: TrainedRun, categories: dict[int, str], *, fuse: bool = False) -> None:
        self.cfg = trained.cfg
        self.weights = trained.weights
        self.categories = categories
        self.fused = fuse
        self.model: nn.Module = fuse_for_inference(trained.model) if fuse else trained.model
        self.resize = ResizeShortestEdge([self.cfg.INPUT.MIN_SIZE_TEST] * 2, self.cfg.INPUT.MAX_SIZE_TEST)

    @classmethod
    def from_run(cls, run: Path | str, weights: Path | str | None = None, *, fuse: bool = False) -> Self:
        """Loads the detector of a run.

        Runs of a lazy config are rejected: their `config.yaml` can create arbitrary Python objects.

        Args:
            run: the folder of the run, with `config.yaml`, a checkpoint and `run.json`.
            weights: a checkpoint; by default the run's newest.
            fuse: see above.

        Raises:
            UserError: the folder is not a run, the weights can't be read or don't fit, or the classes are unknown.
        """
        run = Path(run)
        cfg = read_run_config(run)
        trained = load_trained_run(run, cfg, None if weights is None else Path(weights))
        return cls(trained, run_categories(run, cfg), fuse=fuse)

    @classmethod
    def from_file(cls, path: Path | str, *, fuse: bool = False) -> Self:
        """Loads a file of :meth:`save`. No code in the file is run.

        Raises:
            UserError: the file is damaged or of another kind.
        """
        path = Path(path)
        cfg, categories = read_detector_file(path)
        return cls(load_trained_run(path.parent, cfg, path), categories, fuse=fuse)

    def save(self, path: Path | str) -> None:
        """Writes weights, their assumptions, config and classes into one file, for :meth:`from_file`.

        Raises:
            UserError: the file exists, its folder does not, or the detector is fused.
            OSError: the file can't be written.
        """
        if self.fused:
            raise UserError("predict.fused", f"{path}: a fused detector can't be saved; load it without fuse=True")
        write_detector_file(Path(path), self.model, self.cfg, self.categories)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by `pred_classes`."""
        return tuple(self.categories.values())

    @overload
    def __call__(self, images: ImageInput, *, channel_order: str = ..., batch_size: int = ...) -> Instances: ...

    @overload
    def __call__(
        self, images: Sequence[ImageInput], *, channel_order: str = ..., batch_size: int = ...
    ) -> list[Instances]: ...

    def __call__(self, images: Any, *, channel_order: str = "BGR", batch_size: int = BATCH_SIZE) -> Any:
        """Detections on the CPU, the highest-scoring first: `Instances` for an image, a list for a list or tuple.

        Boxes are (x0, y0, x1, y1) in pixels of the rotated image. A mask head adds `pred_masks` (N, H, W), a keypoint
        head `pred_keypoints` (N, K, 3). For a Panoptic FPN these are the objects; see :meth:`outputs` for the rest.

        Args:
            images: one image, or a list or tuple.
            channel_order: of arrays, `BGR` or `RGB`.
            batch_size: number of images per batch; only these are in memory.

        Raises:
            UserError: an input is not an image, can't be read, or is too long and thin to be resized.
        """
        several = isinstance(images, list | tuple)
        outputs = self.outputs(images if several else [images], channel_order=channel_order, batch_size=batch_size)
        instances = [output["instances"].to("cpu") for output in outputs]
        return instances if several else instances[0]

    def outputs(
        self, images: Iterable[ImageInput], *, channel_order: str = "BGR", batch_size: int = BATCH_SIZE
    ) -> Iterator[dict[str, Any]]:
        """Yields detectron2's output dictionary for each image, on the model's device.

        It has `instances`; for a Panoptic FPN also `sem_seg` and `panoptic_seg`.

        `images` may be any iterable: a batch is read when it is needed. For the other arguments see :meth:`__call__`.
        """
        if channel_order not in ("BGR", "RGB"):
            raise UserError(
                "predict.channel_order", f"channel_order: {channel_order!r} is neither BGR nor RGB; use one of them"
            )
        remaining = iter(images)
        while batch := [self.entry(given, channel_order) for given in islice(remaining, batch_size)]:
            with torch.no_grad():
                outputs = self.model(batch)
            yield from outputs

    def entry(self, given: ImageInput, array_order: str) -> dict[str, Any]:
        """The model's input for one image: the resized `image`, and the original `height` and `width`.

        Raises:
            UserError: it is not an image, can't be read, or is so long and thin that no pixels remain.
        """
        image = image_array(given, self.cfg.INPUT.FORMAT, array_order)
        (height, width), limits = image.shape[:2], self.cfg.INPUT
        short, longest = limits.MIN_SIZE_TEST, limits.MAX_SIZE_TEST
        if short and 0 in ResizeShortestEdge.get_output_shape(height, width, short, longest):
            size = f"{width}x{height} pixels"
            raise UserError("data.too_thin", f"{size} are too long and thin for INPUT.MAX_SIZE_TEST {longest}; crop it")
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}
