"""Runs a trained detector on single images or batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typing_extensions import Self

from ..checkpoint.timm_handler import find_model_weights
from ..config.buildable import check_backbone
from ..config.defaults import classes_node
from ..config.timm_config import backbone_label, has_timm_backbone
from ..errors import UserError, counted
from ..export.exported_detector import ExportedDetector
from ..modeling.fuse.fuse_detector import fuse_for_inference
from ..runs.categories import config_categories, run_categories
from ..runs.trained_run import last_checkpoint, load_trained_run, read_run_config
from ..visualization.drawing import class_colours, draw_boxes
from .detector_file import read_detector_file, write_detector_file
from .hub import HubDetector
from .image_array import ImageInput, image_array

# Default batch size: a ResNet-50-FPN at 800 pixels takes some gigabytes.
BATCH_SIZE = 4


class SEPredictor(HubDetector):
    """Maps images to detectron2's `Instances`, on a GPU if there is one.

    :meth:`from_run` takes the folder of a run, also of one of detectron2's own trainer, :meth:`from_file` a file of
    :meth:`save`, :meth:`from_pretrained` a name on the Hugging Face Hub or a folder of :meth:`save_pretrained`; the
    constructor takes a config and weights, as detectron2's `DefaultPredictor`.

    An image is a path, a PIL image, or an (H, W, 3) array of uint8. Arrays are BGR as in detectron2's
    `DefaultPredictor`, or RGB with `channel_order="RGB"`; the wrong order is not detected, and lowers AP. Files and PIL
    images are rotated by their EXIF orientation and converted to 8-bit colour.

    For a single image the result is that of `DefaultPredictor`. A list is split into batches of `batch_size` images,
    which are padded to the same size. In detectron2 the detections in an image depend slightly on its batch; with
    `MODEL.SE.IGNORE_PADDING` or `batch_size=1` they do not (docs/PADDING.md).

    For the package `supervision`, use `supervision.Detections.from_detectron2({"instances": instances})`.

    Args:
        cfg: the detector's config; not changed. Without a GPU, `MODEL.DEVICE` is the CPU.
        weights: of the whole detector: a file, or a name that `MODEL.WEIGHTS` takes; by default the config's.
        class_names: in the model's order, or by the data set's category id; by default those of the config's data sets,
            which detectron2 must know.
        fuse: make the detector faster with :func:`se_detection.fuse_for_inference`.

    Raises:
        UserError: the weights can't be read or don't fit the config, or the class names are unknown or too many or few.
    """

    def __init__(
        self,
        cfg: CfgNode,
        weights: Path | str = "",
        *,
        class_names: Sequence[str] | Mapping[int, str] = (),
        fuse: bool = False,
    ) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        if not torch.cuda.is_available():
            self.cfg.MODEL.DEVICE = "cpu"
        check_backbone(self.cfg)
        names = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names, 1))
        self.categories = dict(names) or config_categories(cfg)
        if len(self.categories) != (number := cfg.MODEL[classes_node(cfg)].NUM_CLASSES):
            found = counted(len(self.categories), "class name")
            raise UserError("predict.class_names", f"{found} for a detector of {number}; give one for each class")
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise UserError("weights.none", "there are no weights; give a file, or set MODEL.WEIGHTS")
        self.weights = find_model_weights(str(weights), for_timm=has_timm_backbone(cfg))
        model = load_trained_run(self.weights.parent, self.cfg, self.weights).model
        self.fused = fuse
        self.model: nn.Module = fuse_for_inference(model) if fuse else model
        self.resize = _resize(self.cfg)

    @classmethod
    def from_run(
        cls,
        run: Path | str,
        weights: Path | str | None = None,
        *,
        class_names: Sequence[str] | Mapping[int, str] = (),
        fuse: bool = False,
    ) -> Self:
        """Loads the detector of a run, of `se-det train` or of detectron2's own trainer.

        Runs of a lazy config are rejected: their `config.yaml` can create arbitrary Python objects.

        Args:
            run: the folder of the run, with `config.yaml` and a checkpoint.
            weights: a checkpoint; by default the run's newest.
            class_names: see above; by default those in `run.json`, or of data sets that detectron2 knows.
            fuse: see above.

        Raises:
            UserError: the folder is not a run, the weights can't be read or don't fit, or the classes are unknown.
        """
        run = Path(run)
        cfg = read_run_config(run)
        file = last_checkpoint(run) if weights is None else Path(weights)
        return cls(cfg, file, class_names=class_names or run_categories(run, cfg), fuse=fuse)

    @classmethod
    def from_file(cls, path: Path | str, *, fuse: bool = False) -> Self:
        """Loads a file of :meth:`save`. No code in the file is run.

        Raises:
            UserError: the file is damaged or of another kind.
        """
        path = Path(path)
        cfg, categories = read_detector_file(path)
        return cls(cfg, path, class_names=categories, fuse=fuse)

    @classmethod
    def from_export(cls, path: Path | str, *, runtime: str | None = None) -> Self:
        """Loads an ONNX, OpenVINO or TorchScript file of `se-det export`.

        Its precision is that with which it was exported. TorchScript can run code: only load files that you trust.

        Args:
            path: a file `.onnx`, `.xml` or `.ts`.
            runtime: `onnxruntime`, `openvino` (for `.onnx` too) or `torch`; by default the file's first.

        Raises:
            UserError: the file can't be read, or not by this runtime, or the runtime is not installed.
        """
        self = cls.__new__(cls)
        self.weights = Path(path)
        detector = ExportedDetector(self.weights, runtime)
        self.model, description = detector, detector.description
        self.cfg = get_cfg()
        self.cfg.INPUT.FORMAT = description["input"]["channel_order"]
        self.cfg.INPUT.MIN_SIZE_TEST = description["resize"]["shortest_side"]
        self.cfg.INPUT.MAX_SIZE_TEST = description["resize"]["longest_side"]
        self.categories = {entry["id"]: entry["name"] for entry in description["classes"]}
        self.fused = False
        self.resize = _resize(self.cfg)
        return self

    def save(self, path: Path | str) -> None:
        """Writes weights, their assumptions, config and classes into one file, for :meth:`from_file`.

        Raises:
            UserError: the file exists, its folder does not, or the detector is fused or exported.
            OSError: the file can't be written.
        """
        self._check_can_be_saved(path)
        write_detector_file(Path(path), self.model, self.cfg, self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Indexed by `pred_classes`."""
        return tuple(self.categories.values())

    # The former name.
    classes = class_names

    def __repr__(self) -> str:
        if isinstance(self.model, ExportedDetector):
            return f"{type(self).__name__}({self.model.description['detector']}, {self.weights}, {self.model.runtime})"
        parts = [
            f"{self.cfg.MODEL.META_ARCHITECTURE} with {backbone_label(self.cfg)}",
            counted(len(self.categories), "class", "classes"),
            str(self.weights),
            self.cfg.MODEL.DEVICE,
            *["fused"] * self.fused,
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @overload
    def __call__(
        self, images: ImageInput, *, score: float = ..., channel_order: str = ..., batch_size: int = ...
    ) -> Instances: ...

    @overload
    def __call__(
        self, images: Sequence[ImageInput], *, score: float = ..., channel_order: str = ..., batch_size: int = ...
    ) -> list[Instances]: ...

    def __call__(
        self, images: Any, *, score: float = 0.0, channel_order: str = "BGR", batch_size: int = BATCH_SIZE
    ) -> Any:
        """Detections on the CPU, the highest-scoring first: `Instances` for an image, a list for a list or tuple.

        Boxes are (x0, y0, x1, y1) in pixels of the rotated image. A mask head adds `pred_masks` (N, H, W), a keypoint
        head `pred_keypoints` (N, K, 3). For a Panoptic FPN these are the objects; see :meth:`outputs` for the rest.

        Args:
            images: one image, or a list or tuple.
            score: the lowest score, from 0 to 1; by default all that the config's thresholds keep.
            channel_order: of arrays, `BGR` or `RGB`.
            batch_size: number of images per batch; only these are in memory.

        Raises:
            UserError: an input is not an image, can't be read, or is too long and thin to be resized.
        """
        if not 0 <= score <= 1:
            raise UserError("predict.score", f"score: {score} is not a score; give a number from 0 to 1")
        several = isinstance(images, list | tuple)
        outputs = self.outputs(images if several else [images], channel_order=channel_order, batch_size=batch_size)
        found = [output["instances"].to("cpu") for output in outputs]
        found = [instances[instances.scores >= score] for instances in found]
        return found if several else found[0]

    def draw(self, image: ImageInput, *, score: float = 0.5, channel_order: str = "BGR") -> NDArray[np.uint8]:
        """An image with its detections: boxes with class and score, and masks and keypoints if there are any.

        Images whose longer side has fewer than 640 pixels are enlarged, so that the labels are readable.

        Args:
            score: the lowest score.
            channel_order: of the result, and of `image` if it is an array: `BGR`, for OpenCV, or `RGB`.

        Returns:
            An (H, W, 3) array.

        Raises:
            UserError: see :meth:`__call__`.
        """
        found = instances_to_coco_json(self(image, score=score, channel_order=channel_order), 0)
        names = dict(enumerate(self.class_names))
        pixels = np.ascontiguousarray(image_array(image, "RGB", channel_order))
        drawn = np.asarray(draw_boxes(Image.fromarray(pixels), found, names, class_colours(names)))
        return drawn if channel_order == "RGB" else np.ascontiguousarray(drawn[:, :, ::-1])

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


def _resize(cfg: CfgNode) -> ResizeShortestEdge:
    return ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
