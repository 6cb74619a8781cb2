"""Exports the detector of a run, and compares each export with the original."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor
from tqdm import tqdm

from ..comparison.compare import compare
from ..config.timm_config import backbone_label
from ..errors import UserError, counted
from ..files import file_digest
from ..modeling.fuse.fuse_detector import fuse_layers
from ..runs.categories import run_categories
from ..runs.evaluation_data import (
    EvaluationData,
    coco_results,
    image_batches,
    open_evaluation_data,
    register_recorded,
    spread,
)
from ..runs.trained_run import TrainedRun, load_trained_run, read_run_config
from .exported_detector import ExportedDetector
from .formats import (
    SUFFIXES,
    export_megabytes,
    place_onnx,
    smallest_side,
    write_onnx,
    write_torch_export,
    write_torchscript,
)
from .graph import find_instances, output_names
from .int8 import Quantizer
from .metadata import MEANING, Description, describe
from .output_check import OutputDifference, compare_detections, compare_maps, resized_copies

# Tolerances of a float32 export: pixels, scores from 0 to 1, and feature maps relative to their largest value.
PIXELS, SCORES, MAPS = 0.05, 1e-3, 1e-4


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of an exported detector.

    Args:
        format: `torchscript`, `onnx` or `openvino` for the whole detector; `torch-export` for backbone and FPN.
        precision: of backbone and FPN; of OpenVINO, and `int8`, of the whole detector.
        fuse: fold norms into convolutions first (:func:`fuse_for_inference`); always done for other precisions.
        scripting: script the detector instead of tracing it.
    """

    format: str
    precision: str = "float32"
    fuse: bool = False
    scripting: bool = False

    @property
    def name(self) -> str:
        """The part of the file name after the run's name."""
        return "-".join([self.format, self.precision] + ["fused"] * self.fuse + ["scripted"] * self.scripting)

    def path(self, output: Path, run: Path) -> Path:
        """The file of a run's export in this form."""
        return output / f"{run.resolve().name}-{self.name}{SUFFIXES[self.format]}"


@dataclass(frozen=True, kw_only=True)
class Export:
    """An exported file, and its difference from the original.

    Args:
        ap: AP of the original and the exported detector on the test set, in percent, and the difference with its 95 %
            interval; None if not measured.
        layers: of int8, the signal-to-noise ratio of each layer in decibels; only if measured.
        float_layers: of int8, the layers that stay in float32 because of the limit of the AP loss.
    """

    file: Path
    detector: str
    form: Form
    difference: OutputDifference
    ap: dict[str, Any] | None = None
    layers: dict[str, float] = field(default_factory=dict)
    float_layers: Sequence[str] = ()

    @property
    def agrees(self) -> bool:
        """Whether the export matches the original; in other precisions than float32 only a sanity check."""
        worst, unpaired, detections = self.difference.worst, self.difference.unpaired, self.difference.detections
        if self.form.precision != "float32":
            return all(map(math.isfinite, worst.values())) and unpaired <= detections
        bounds = {"boxes": PIXELS, "keypoints": PIXELS, "scores": SCORES, "masks": SCORES}
        close = all(difference <= bounds.get(name, MAPS) for name, difference in worst.items())
        # Scores within rounding of the threshold may be kept by only one of the two.
        return close and unpaired <= 0.01 * detections

    def to_dict(self) -> dict[str, Any]:
        """A row of `exports.json`."""
        file = {"file": self.file.name, "detector": self.detector, "megabytes": export_megabytes(self.file)}
        layers = {"layers": self.layers, "float_layers": list(self.float_layers)} if self.layers else {}
        return {**file, **asdict(self.form), **asdict(self.difference), "ap": self.ap, **layers}


class RunExporter:
    """Exports one run in several forms.

    Args:
        folder: of the run.
        images: number of test images to compare on, each at four sizes.
        split: a COCO file and its image folder, to use instead of the test set.

    Raises:
        UserError: the folder is not a run, its data is missing or empty, or its detector can't be exported.
    """

    def __init__(self, folder: Path, *, images: int, split: Sequence[Path] | None = None) -> None:
        cfg = read_run_config(folder)
        self.run: TrainedRun = load_trained_run(folder, cfg)
        model: Any = self.run.model
        if not isinstance(model, GeneralizedRCNN | RetinaNet) or isinstance(model, PanopticFPN):
            raise UserError(
                "export.architecture",
                f"{folder}: a {type(model).__name__} can't be exported; R-CNNs and RetinaNet can",
            )
        # Otherwise tracing keeps every map for a backward pass.
        model.requires_grad_(False)
        self.data: EvaluationData = open_evaluation_data(self.run, split, None)
        if not self.data.images:
            raise UserError(
                "data.no_images", f"{self.data.annotations} has no images to compare on; give another --split"
            )
        self.images = list(self._tensors(spread(self.data.images, images)))
        # Trace with the image that has the most detections, so that all branches are taken.
        with torch.no_grad():
            instances = [find_instances(model, image) for image in self.images]
        counts = list(map(len, instances))
        self.detections = max(counts)
        self.example = self.images[counts.index(self.detections)]
        self.description = describe(
            cfg,
            run_categories(folder, cfg),
            detector=f"{folder.resolve().name}: {_kind(self.run)}",
            weights_sha256=file_digest(self.run.weights),
            outputs={name: MEANING[name] for name in output_names(instances[0])},
        )

    def export(
        self,
        path: Path,
        form: Form,
        *,
        calibration: int,
        evaluate: bool,
        report: bool = False,
        max_ap_loss: float | None = None,
    ) -> Export:
        """Writes an export and compares it with the original.

        Args:
            path: the file to write.
            calibration: number of training images for int8.
            evaluate: measure the AP of both detectors on the test set.
            report: of int8, measure the noise of each layer.
            max_ap_loss: of int8, the largest loss of AP in percent: the noisiest layers stay in float32, twice as many
                each time, until the loss is not larger.

        Raises:
            UserError: this detector can't be exported in this form, or has no detections to compare.
        """
        model: Any = self.run.model
        if form.format in ("onnx", "openvino") and "keypoints" in self.description["outputs"]:
            raise UserError(
                "export.keypoints",
                f"{self.run.folder}: detectron2's keypoint head can't be exported to ONNX; use --format torchscript",
            )
        if form.format != "torch-export" and not self.detections:
            raise UserError(
                "export.no_detections",
                f"{self.run.folder}: no detections in {counted(len(self.images), 'test image')}, so there is nothing "
                "to compare; raise --images, or train longer",
            )
        # OpenVINO converts to bfloat16 when it compiles the file.
        half = getattr(torch, form.precision) if form.precision in ("float16", "bfloat16") else None
        if form.fuse or form.precision != "float32":
            model = fuse_layers(model, dtype=None if form.format == "openvino" else half)
        description = {**self.description, "format": form.format, "precision": form.precision}
        if form.format == "torch-export":
            difference = self._export_backbone(path, model, description)
            return Export(file=path, detector=self.description["detector"], form=form, difference=difference)
        measured: dict[str, Any] = {}
        if form.format == "torchscript":
            write_torchscript(path, model, self.example, description, scripting=form.scripting)
        else:
            # They may be missing, which is said before the work.
            images = self._calibration_images(calibration) if form.precision == "int8" else []
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "detector.onnx")
                write_onnx(source, model, self.example, description)
                if form.precision == "int8":
                    tensors = tqdm(self._tensors(images), "calibration", len(images), unit="image", disable=None)
                    quantizer = Quantizer(source, tensors, Path(folder))
                    measured = self._quantize(quantizer, path, description, report=report, max_ap_loss=max_ap_loss)
                else:
                    place_onnx(source, path)
        exported = ExportedDetector(path).find
        difference = compare_detections(lambda image: find_instances(self.run.model, image), exported, self.images)
        if evaluate and "ap" not in measured:
            measured["ap"] = self.evaluate(exported)
        detector = self.description["detector"]
        return Export(file=path, detector=detector, form=form, difference=difference, **measured)

    def _quantize(
        self, quantizer: Quantizer, path: Path, description: Description, *, report: bool, max_ap_loss: float | None
    ) -> dict[str, Any]:
        """Writes the file; returns what is known of its layers and AP."""
        float_layers: list[str] = []
        place_onnx(quantizer.quantize(description), path)
        layers = quantizer.sensitivity() if report or max_ap_loss is not None else {}
        if max_ap_loss is None:
            return {"layers": layers}
        while (ap := self.evaluate(ExportedDetector(path).find))["difference"]["value"] < -max_ap_loss:
            if len(float_layers) == len(layers):
                break
            float_layers = list(layers)[: max(2, 2 * len(float_layers))]
            place_onnx(quantizer.quantize(description, float_layers), path)
        return {"layers": layers, "float_layers": float_layers, "ap": ap}

    def _export_backbone(self, path: Path, model: Any, description: Description) -> OutputDifference:
        original: Any = self.run.model
        multiple = original.backbone.size_divisibility or 32
        batch_input = {
            "shape": ["images", 3, "height", "width"],
            "dtype": "float32",
            "subtract": original.pixel_mean.flatten().tolist(),
            "divide_by": original.pixel_std.flatten().tolist(),
            "pad_to_multiples_of": multiple,
        }
        description["input"] = description["input"] | batch_input
        description["outputs"] = {
            name: f"(images, {shape.channels}, height / {shape.stride}, width / {shape.stride}) float32"
            for name, shape in original.backbone.output_shape().items()
        }
        write_torch_export(path, model.backbone, original.device, description)
        program = torch.export.load(str(path)).module()
        smallest = smallest_side(original.backbone, multiple)
        batches = []
        for image in chain.from_iterable(map(resized_copies, self.images)):
            batch = original.preprocess_image([{"image": image}]).tensor
            height, width = (max(smallest, -(-side // multiple) * multiple) for side in batch.shape[2:])
            batches.append(F.pad(batch, (0, width - batch.shape[3], 0, height - batch.shape[2])))
        batches.append(torch.cat([batches[0], batches[0].flip(3)]))
        return compare_maps(original.backbone, program, batches)

    def _tensors(self, images: Sequence[dict[str, Any]]) -> Iterator[Tensor]:
        for (entry,) in image_batches(self.run.cfg, images):
            yield entry["image"].to(self.run.model.device)

    def _calibration_images(self, count: int) -> list[dict[str, Any]]:
        if not self.run.cfg.DATASETS.TRAIN:
            raise UserError("export.no_training_set", f"{self.run.folder}: DATASETS.TRAIN is empty, and int8 needs it")
        name = self.run.cfg.DATASETS.TRAIN[0]
        register_recorded(self.run.folder, name, ", but int8 needs training images")
        return spread(DatasetCatalog.get(name), count)

    def evaluate(self, exported: Callable[[Tensor], Instances]) -> dict[str, Any]:
        """AP of the original and of another detector on the test set, in percent, and the difference.

        Raises:
            UserError: the test set has no objects.
        """
        comparison = compare(self._original, self._results(exported), self.data.coco().dataset).to_dict()
        if comparison["difference"]["AP"]["value"] is None:
            raise UserError(
                "export.no_objects", "the test set has no objects, so there is no AP; omit --evaluate and --max-ap-loss"
            )
        return {
            "original": comparison["baseline"]["AP"],
            "exported": comparison["candidate"]["AP"],
            "difference": comparison["difference"]["AP"],
            "images": len(self.data.images),
        }

    @cached_property
    def _original(self) -> list[dict[str, Any]]:
        return self._results(lambda image: find_instances(self.run.model, image))

    def _results(self, find: Callable[[Tensor], Instances]) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        images = self.data.images
        loaded = image_batches(self.run.cfg, images)
        bar = tqdm(loaded, desc="evaluation", total=len(images), unit="image", disable=None)
        with torch.no_grad():
            for image, (entry,) in zip(images, bar, strict=True):
                instances = find(entry["image"].to(self.run.model.device))
                results += coco_results(image, _only_boxes(instances, entry), self.data)
        return results


def _only_boxes(instances: Instances, entry: dict[str, Any]) -> Instances:
    boxes = Instances(instances.image_size)
    for name in ("pred_boxes", "scores", "pred_classes"):
        boxes.set(name, instances.get(name))
    return detector_postprocess(boxes, entry["height"], entry["width"])


def _kind(run: TrainedRun) -> str:
    cfg = run.cfg
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind == "GeneralizedRCNN":
        parts = {"Mask": cfg.MODEL.MASK_ON, "Keypoint": cfg.MODEL.KEYPOINT_ON}
        cascade = ["Cascade"] * cfg.MODEL.ROI_HEADS.NAME.endswith("CascadeROIHeads")
        kind = " ".join(
            cascade + ([name for name, on in parts.items() if on] or ["Faster"] * (not cascade)) + ["R-CNN"]
        )
    return f"{kind}, {backbone_label(cfg)}"
