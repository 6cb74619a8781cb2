"""The detector of a run, exported and checked at once against the original."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import Tensor
from tqdm import tqdm

from ..compare.compare import compare
from ..errors import UserError
from ..files import file_digest
from ..modeling.fuse.fuse import fuse_for_inference
from ..runs.categories import run_categories
from ..runs.evaluation_data import (
    EvaluationData,
    batches,
    coco_results,
    open_evaluation_data,
    register_recorded,
    spread,
)
from ..runs.trained_run import TrainedRun, load_trained_run, read_run_config
from .exported_detector import ExportedDetector
from .formats import SUFFIXES, smallest_side, write_onnx, write_torch_export, write_torchscript
from .graph import check_kind, find, outputs_of
from .int8 import quantise
from .metadata import MEANING, Description
from .output_check import OutputDifference, compare_detections, compare_maps, sizes_of

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
# What an export in float32 may differ by: pixels, and scores from 0 to 1.
PIXELS, SCORES, MAPS = 0.05, 1e-3, 1e-4


@dataclass(frozen=True, kw_only=True)
class Form:
    """What to export a detector as.

    Args:
        format: `torchscript` or `onnx`, of the whole detector; `torch-export`, of backbone and FPN.
        precision: what backbone and FPN compute in; `int8` is for the whole of an ONNX detector.
        fuse: fold norms into convolutions first (:func:`fuse_for_inference`), as other precisions always do.
        scripting: script the detector instead of tracing it.

    Raises:
        UserError: there is no such combination.
    """

    format: str
    precision: str = "float32"
    fuse: bool = False
    scripting: bool = False

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.format != "onnx":
            raise UserError(f"--precision int8 is onnxruntime's; --format {self.format} has none")
        if self.precision == "bfloat16" and self.format == "onnx":
            raise UserError("--precision bfloat16: onnxruntime has no such convolution; take float16")
        if self.scripting and (self.format, self.precision, self.fuse) != ("torchscript", "float32", False):
            raise UserError("--scripting is of torchscript in float32, not fused; leave it out to trace the detector")

    @property
    def name(self) -> str:
        """What the file is called after, beside the run."""
        parts = [self.format, self.precision] + ["fused"] * self.fuse + ["scripted"] * self.scripting
        return "-".join(parts)

    def path(self, output: Path, run: Path) -> Path:
        """Where a run is written to in this form."""
        return output / f"{run.resolve().name}-{self.name}{SUFFIXES[self.format]}"


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file that was written, and how far it is from the original.

    Args:
        ap: COCO's AP over the test set of original and exported detector, in percent, and the difference with its
            95 % interval; None where it was not measured.
    """

    file: Path
    detector: str
    form: Form
    agreement: OutputDifference
    ap: dict[str, Any] | None

    @property
    def agrees(self) -> bool:
        """Whether an export gives what it should; in other precisions than float32, anything of the kind at all."""
        worst, unpaired, detections = self.agreement.worst, self.agreement.unpaired, self.agreement.detections
        if self.form.precision != "float32":
            return all(map(math.isfinite, worst.values())) and unpaired <= detections
        bounds = {"boxes": PIXELS, "keypoints": PIXELS, "scores": SCORES, "masks": SCORES}
        near = all(difference <= bounds.get(name, MAPS) for name, difference in worst.items())
        # A score that is all but the threshold may be on either side of it.
        return near and unpaired <= 0.01 * detections

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        size = round(self.file.stat().st_size / 2**20, 1)
        own = {"file": self.file.name, "detector": self.detector, "megabytes": size}
        return {**own, **asdict(self.form), **asdict(self.agreement), "ap": self.ap}


class RunExporter:
    """Exports one run in several forms.

    Args:
        folder: of a training with tools/train_net.py.
        images: how many of its test set each export is compared on, at four sizes each.
        split: a COCO file and the folder of its images instead of the test set.

    Raises:
        UserError: it is no run, its data are gone or empty, or its detector can't be exported.
    """

    def __init__(self, folder: Path, *, images: int, split: Sequence[Path] | None = None) -> None:
        cfg = read_run_config(folder)
        self.run: TrainedRun = load_trained_run(folder, cfg)
        check_kind(self.run.model, folder)
        # Or what was traced would keep every map for a backward pass.
        self.run.model.requires_grad_(False)
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise UserError(f"{folder}: images in {cfg.INPUT.FORMAT} can't be exported; RGB and BGR can")
        self.split: EvaluationData = open_evaluation_data(self.run, split, None)
        if not self.split.images:
            raise UserError(f"{self.split.annotations} has no images to compare on")
        self.images = list(self._images(spread(self.split.images, images)))
        # A tracer goes where there is something to go for.
        with torch.no_grad():
            found = [find(self.run.model, image) for image in self.images]
        numbers = list(map(len, found))
        self.detections = max(numbers)
        self.example = self.images[numbers.index(self.detections)]
        self.description = Description(
            format="",
            precision="",
            detector=f"{folder.resolve().name}: {_kind(self.run)}",
            weights_sha256=file_digest(self.run.weights),
            channel_order=cfg.INPUT.FORMAT,
            shortest_side=cfg.INPUT.MIN_SIZE_TEST,
            longest_side=cfg.INPUT.MAX_SIZE_TEST,
            classes=tuple(run_categories(folder, cfg).items()),
            outputs={name: MEANING[name] for name in outputs_of(found[0])},
        )

    def export(self, path: Path, form: Form, *, calibration: int, evaluate: bool) -> Export:
        """Writes a form and compares it with the original.

        Args:
            path: the file to write.
            calibration: how many training images the ranges of an int8 detector come from.
            evaluate: measure the AP of both over the run's test set.

        Raises:
            UserError: this detector can't be written so; or nothing is found, and so nothing would be compared.
        """
        model: Any = self.run.model
        if form.format == "onnx" and "keypoints" in self.description.outputs:
            raise UserError(
                f"{self.run.folder}: the exporter to ONNX can't translate how detectron2 finds keypoints in heat maps; "
                "take --format torchscript"
            )
        if form.format != "torch-export" and not self.detections:
            raise UserError(
                f"{self.run.folder}: its detector finds nothing in {len(self.images)} of its test images, so that no "
                "export could be compared with it; take more of them by --images, or train it longer"
            )
        if form.fuse or form.precision != "float32":
            half = getattr(torch, form.precision) if form.precision in ("float16", "bfloat16") else None
            model = fuse_for_inference(model, dtype=half)
        description = replace(self.description, format=form.format, precision=form.precision)
        if form.format == "torch-export":
            return self._export_backbone(path, model, form, description)
        if form.format == "torchscript":
            write_torchscript(path, model, self.example, description, scripting=form.scripting)
        elif form.precision == "int8":
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "float32.onnx")
                write_onnx(source, model, self.example, description)
                quantise(source, path, self._calibration_images(calibration), description)
        else:
            write_onnx(path, model, self.example, description)
        exported = ExportedDetector(path)
        agreement = compare_detections(lambda image: find(self.run.model, image), exported, self.images)
        ap = self._evaluate(exported) if evaluate else None
        return Export(file=path, detector=self.description.detector, form=form, agreement=agreement, ap=ap)

    def _export_backbone(self, path: Path, model: Any, form: Form, description: Description) -> Export:
        original: Any = self.run.model
        multiple = original.backbone.size_divisibility or 32
        description = replace(
            description,
            pixel_mean=tuple(original.pixel_mean.flatten().tolist()),
            pixel_std=tuple(original.pixel_std.flatten().tolist()),
            multiple=multiple,
            outputs={
                name: f"(images, {shape.channels}, height / {shape.stride}, width / {shape.stride}) float32"
                for name, shape in original.backbone.output_shape().items()
            },
        )
        write_torch_export(path, model.backbone, original.device, description)
        program = torch.export.load(str(path)).module()
        smallest = smallest_side(original.backbone, multiple)
        batches = []
        for image in chain.from_iterable(map(sizes_of, self.images)):
            batch = original.preprocess_image([{"image": image}]).tensor
            height, width = (max(smallest, -(-side // multiple) * multiple) for side in batch.shape[2:])
            batches.append(F.pad(batch, (0, width - batch.shape[3], 0, height - batch.shape[2])))
        batches.append(torch.cat([batches[0], batches[0].flip(3)]))
        agreement = compare_maps(original.backbone, program, batches)
        return Export(file=path, detector=self.description.detector, form=form, agreement=agreement, ap=None)

    def _images(self, images: Sequence[dict[str, Any]]) -> Iterator[Tensor]:
        for (entry,) in batches(self.run.cfg, images):
            yield entry["image"].to(self.run.model.device)

    def _calibration_images(self, count: int) -> Iterator[Tensor]:
        if not self.run.cfg.DATASETS.TRAIN:
            raise UserError(f"{self.run.folder}: DATASETS.TRAIN is empty, and int8 needs training images")
        name = self.run.cfg.DATASETS.TRAIN[0]
        register_recorded(self.run.folder, name, ", and int8 needs training images")
        images = spread(DatasetCatalog.get(name), count)
        yield from tqdm(self._images(images), desc="calibration", total=len(images), unit="image", disable=None)

    def _evaluate(self, exported: ExportedDetector) -> dict[str, Any]:
        original: list[dict[str, Any]] = []
        candidate: list[dict[str, Any]] = []
        images = self.split.images
        bar = tqdm(batches(self.run.cfg, images), desc="evaluation", total=len(images), unit="image", disable=None)
        with torch.no_grad():
            for image, (entry,) in zip(images, bar, strict=True):
                pixels = entry["image"].to(self.run.model.device)
                for results, found in ((original, find(self.run.model, pixels)), (candidate, exported(pixels))):
                    results += coco_results(image, _boxes_alone(found, entry), self.split)
        content = self.split.coco().dataset
        comparison = compare(original, candidate, content).to_dict()
        return {
            "original": comparison["baseline"]["AP"],
            "exported": comparison["candidate"]["AP"],
            "difference": comparison["difference"]["AP"],
            "images": len(images),
        }


def _boxes_alone(found: Instances, entry: dict[str, Any]) -> Instances:
    boxes = Instances(found.image_size)
    for name in ("pred_boxes", "scores", "pred_classes"):
        boxes.set(name, found.get(name))
    return detector_postprocess(boxes, entry["height"], entry["width"])


def _kind(run: TrainedRun) -> str:
    cfg = run.cfg
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind == "GeneralizedRCNN":
        parts = {"Mask": cfg.MODEL.MASK_ON, "Keypoint": cfg.MODEL.KEYPOINT_ON}
        cascade = ["Cascade"] * (cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads")
        kind = " ".join(
            cascade + ([name for name, on in parts.items() if on] or ["Faster"] * (not cascade)) + ["R-CNN"]
        )
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
    return f"{kind}, {backbone} {cfg.MODEL.RESNETS.DEPTH}"
