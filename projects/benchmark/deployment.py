"""Whole detectors in the runtimes of `se-det export`: time on given images, memory of a process, file size, and AP."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from se_detection.export.exported_detector import ExportedDetector
from se_detection.export.exporter import Form, RunExporter
from se_detection.export.formats import SUFFIXES, export_megabytes, place_onnx, write_onnx
from se_detection.export.graph import find_instances
from se_detection.export.int8 import Quantizer
from se_detection.export.metadata import MEANING
from se_detection.modeling.fuse.fuse_detector import fuse_for_inference, fuse_layers

from .networks import SE, Case, build_network, random_image

# Images of the test set in a pass, and of the training set for int8.
IMAGES, CALIBRATION = 4, 100


@dataclass(frozen=True)
class ExportedModel:
    """A file of `se-det export` and its runtime; see :class:`~se_detection.export.exporter.Form`."""

    format: str
    precision: str = "float32"
    fused: bool = True

    @property
    def form(self) -> Form:
        """How it is exported."""
        return Form(format=self.format, precision=self.precision, fuse=self.fused)


class Deployment:
    """The detectors of a case: with random weights, or a trained run.

    Args:
        case: of a detector.
        run: the folder of a run; its detector, images of its test set, and their size replace the case's.
        evaluate: measure the AP of each detector on the run's test set, with the 95 % interval of the difference.
    """

    def __init__(self, case: Case, run: Path | None, *, evaluate: bool) -> None:
        self.evaluate = evaluate
        self.exporter = None if run is None else RunExporter(run, images=IMAGES)
        self.images = self.exporter.images if self.exporter else [random_image(case)]
        height, width = self.images[0].shape[1:]
        self.case = replace(case, size=height, width=width)
        self.folder = tempfile.TemporaryDirectory()

    def prepare(self, model: Any, compile_mode: str) -> tuple[Callable[[], object], int | None, dict[str, Any]]:
        """A call that runs a model on all images, the peak memory of a process with it, and the keys for its row."""
        facts: dict[str, Any] = {}
        find: Callable[[Tensor], Instances]
        if isinstance(model, ExportedModel):
            path = Path(self.folder.name, f"{model.form.name}{SUFFIXES[model.format]}")
            if self.exporter:
                export = self.exporter.export(path, model.form, calibration=CALIBRATION, evaluate=self.evaluate)
                facts = {"ap": export.ap}
            else:
                self._export_random(model, path)
                facts = {"ap": None}
            facts["megabytes"] = export_megabytes(path)
            find = ExportedDetector(path).find
        else:
            network = self.exporter.run.model if self.exporter else build_network(model.backbone, self.case)
            if model.fused:
                network = fuse_for_inference(network, compile=compile_mode if model.compiled else None)
            find = partial(_find, network)
            if self.exporter and self.evaluate:
                facts = {"ap": self.exporter.evaluate(find)}
            path = Path(self.folder.name, f"{model.fused}-{model.compiled}.pt")
            # A compiled network can't be saved.
            if not model.compiled:
                torch.save(network, path)
        memory = self._process_memory(path) if path.exists() else None
        return lambda: [find(image) for image in self.images], memory, facts

    def _export_random(self, model: ExportedModel, path: Path) -> None:
        network = build_network(SE, self.case).requires_grad_(False)
        outputs = {name: MEANING[name] for name in ("boxes", "scores", "classes")}
        description = {"outputs": outputs, "precision": model.precision, "input": {}, "resize": {}, "classes": []}
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "detector.onnx")
            write_onnx(source, fuse_layers(network) if model.fused else network, self.images[0], description)
            if model.precision == "int8":
                source = Quantizer(source, self.images, Path(folder)).quantize(description)
            place_onnx(source, path)

    def _process_memory(self, path: Path) -> int:
        image = Path(self.folder.name, "image.npy")
        np.save(image, self.images[0].numpy())
        command = [sys.executable, "-m", "projects.benchmark.process_memory", path, image]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(list(map(str, command)), cwd=root, check=True, capture_output=True, text=True)
        return int(done.stdout)


def _find(network: nn.Module, image: Tensor) -> Instances:
    with torch.no_grad():
        return find_instances(network, image)
