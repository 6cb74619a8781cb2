"""A trained detector for images of any kind, alone or in batches."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import nn

from ..errors import UserError
from ..modeling.fuse.fuse import fuse_for_inference
from ..runs.categories import run_categories
from ..runs.trained_run import TrainedRun, load_trained_run, read_run_config
from .detector_file import read_exported, write_exported
from .image_array import ORDERS, ImageInput, image_array

# Of images, without a word of the caller's: some gigabytes of a ResNet-50-FPN's maps at 800 pixels.
BATCH_SIZE = 4


class SEPredictor:
    """Images to detectron2's `Instances`, on a GPU if there is one; :meth:`from_run` and :meth:`from_file` make it.

    An image is a path, a PIL image, or an (H, W, 3) array of uint8, in BGR as for detectron2's `DefaultPredictor`, or
    in RGB with `channel_order="RGB"`: an array in the other order than is said raises nothing, and costs AP. Files and
    images have their own order, are turned as their EXIF data says, and are made colours of 8 bits.

    An image alone has the answer that `DefaultPredictor` has. Of a list, `batch_size` images at a time are padded to
    one size and are one batch. In detectron2 an image's answer depends on its batch, somewhat; with
    `MODEL.SE.IGNORE_PADDING` or `batch_size=1` it does not (docs/PADDING.md).

    The package `supervision` takes an answer as `supervision.Detections.from_detectron2({"instances": instances})`.

    Args:
        trained: the config, and the detector with its weights.
        categories: names by the data set's category id, in the model's order.
        fuse: make the detector faster by :func:`se_detection.export.fuse_for_inference`.
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
        """The detector of a run's folder, as tools/train_net.py leaves it.

        A run of a lazy config is refused: its `config.yaml` makes Python objects, which could be any.

        Args:
            run: the folder, with `config.yaml`, a checkpoint and `run.json`.
            weights: a checkpoint; by default the run's newest, which is what its evaluation is of.
            fuse: see above.

        Raises:
            UserError: the folder is no run's, the weights can't be read or don't fit, or the classes are unknown.
        """
        run = Path(run)
        cfg = read_run_config(run)
        trained = load_trained_run(run, cfg, None if weights is None else Path(weights))
        return cls(trained, run_categories(run, cfg), fuse=fuse)

    @classmethod
    def from_file(cls, path: Path | str, *, fuse: bool = False) -> Self:
        """The detector of a file that :meth:`save` wrote; no code in it is run.

        Raises:
            UserError: the file is damaged, or something else.
        """
        path = Path(path)
        cfg, categories = read_exported(path)
        return cls(load_trained_run(path.parent, cfg, path), categories, fuse=fuse)

    def save(self, path: Path | str) -> None:
        """Writes weights, what they assume of their input, config and classes into one file, for :meth:`from_file`.

        Raises:
            UserError: there is a file already, no folder for it, or the detector was made faster.
            OSError: it can't be written.
        """
        if self.fused:
            raise UserError(
                f"{path}: a fused detector can't be saved; save it without fuse=True, and fuse it when read"
            )
        write_exported(Path(path), self.model, self.cfg, self.categories)

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each number in `pred_classes`."""
        return tuple(self.categories.values())

    @overload
    def __call__(self, images: ImageInput, *, channel_order: str = ..., batch_size: int = ...) -> Instances: ...

    @overload
    def __call__(
        self, images: Sequence[ImageInput], *, channel_order: str = ..., batch_size: int = ...
    ) -> list[Instances]: ...

    def __call__(self, images: Any, *, channel_order: str = "BGR", batch_size: int = BATCH_SIZE) -> Any:
        """What is found, the surest first, on the CPU: `Instances` for an image, a list of them for a list or tuple.

        Boxes are (x0, y0, x1, y1) in pixels of the image as it is turned; with a mask or keypoint head, `pred_masks`
        (N, H, W) and `pred_keypoints` (N, K, 3) are. Of a Panoptic FPN these are its objects; :meth:`outputs` has the
        rest.

        Args:
            images: one, or a list or tuple.
            channel_order: `BGR` or `RGB`, of arrays.
            batch_size: how many images are in memory, read and resized, at a time.

        Raises:
            UserError: something is no image, can't be read, or is too long and thin to be resized; or the model finds
                no objects.
        """
        several = isinstance(images, list | tuple)
        outputs = self.outputs(images if several else [images], channel_order=channel_order, batch_size=batch_size)
        found = [self._instances(output) for output in outputs]
        return found if several else found[0]

    def outputs(
        self, images: Iterable[ImageInput], *, channel_order: str = "BGR", batch_size: int = BATCH_SIZE
    ) -> Iterator[dict[str, Any]]:
        """detectron2's dictionary for each image, one batch after another, on the model's device.

        It has `instances`, and of a Panoptic FPN `sem_seg` and `panoptic_seg` as well.

        Args:
            images: as many as there are; they are taken when their batch's turn comes.
            others: as above.

        Raises:
            UserError: something is no image, can't be read, or is too long and thin to be resized.
        """
        if channel_order not in ORDERS:
            raise UserError(f"channel_order: {channel_order!r} is not one of {', '.join(ORDERS)}")
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is less than 1")
        waiting = iter(images)
        while batch := [self.entry(given, channel_order) for given in islice(waiting, batch_size)]:
            with torch.no_grad():
                outputs = self.model(batch)
            yield from outputs

    def entry(self, given: ImageInput, array_order: str) -> dict[str, Any]:
        """What the model takes of one image: the resized `image`, and its own `height` and `width`.

        Raises:
            UserError: as above.
        """
        image = image_array(given, self.cfg.INPUT.FORMAT, array_order)
        check_shape(image, self.cfg)
        height, width = image.shape[:2]
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        return {"image": tensor, "height": height, "width": width}

    def _instances(self, output: dict[str, Any]) -> Instances:
        if "instances" not in output:
            raise UserError(f"{self.weights}: a {type(self.model).__name__} gives no boxes; name a detector")
        return output["instances"].to("cpu")


def check_shape(image: NDArray[np.uint8], cfg: CfgNode) -> None:
    """Whether anything is left of an image when it is resized for a config's detector.

    Raises:
        UserError: nothing is.
    """
    (height, width), limits = image.shape[:2], cfg.INPUT
    short, longest = limits.MIN_SIZE_TEST, limits.MAX_SIZE_TEST
    if short and 0 in ResizeShortestEdge.get_output_shape(height, width, short, longest):
        raise UserError(f"{width}x{height} pixels are too long and thin for INPUT.MAX_SIZE_TEST {longest}; crop it")
