"""Runs a detector that se-det export wrote."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from iopath.common.file_io import get_cache_dir
from torch import Tensor, nn

from ..errors import UserError
from .metadata import FIELDS, KEY, read_description

# From (3, H, W) of uint8 to the outputs, in the order of the description.
Run = Callable[[Tensor], Sequence[Tensor] | dict[str, Tensor]]


class ExportedDetector(nn.Module):
    """A detector in a file of `se-det export`: ONNX, OpenVINO's IR or TorchScript.

    onnxruntime and OpenVINO run it on the CPU, with as many threads as PyTorch has; TorchScript on the device of its
    weights.

    Args:
        path: a file `.onnx`, `.xml` (with its `.bin` next to it) or `.ts`. TorchScript can run code: only open files
            that you trust.
        runtime: `onnxruntime`, `openvino` or `torch`; by default the first that can run the file.

    Raises:
        UserError: the file can't be read, or not by this runtime, or the runtime is not installed.
    """

    def __init__(self, path: Path, runtime: str | None = None) -> None:
        super().__init__()
        runtimes = RUNTIMES.get(path.suffix, ())
        if not runtimes or runtime not in (None, *runtimes):
            raise UserError(
                "export.runtime",
                f"{path}: {runtime or 'a runtime'} can't run it; onnxruntime runs .onnx, openvino .xml and .onnx, and "
                "torch .ts",
            )
        self.runtime = runtime or runtimes[0]
        try:
            self.run, text = OPEN[self.runtime](path)
        except UserError:
            raise
        except Exception as error:  # the runtimes' exceptions have no common base class
            raise UserError(
                "export.unreadable", f"{path} can't be read: {next(iter(str(error).splitlines()), '')}; export it again"
            ) from error
        self.description = read_description(text, path)

    def find(self, image: Tensor) -> Instances:
        """Detections in an image, (3, H, W) of uint8, with the size and channel order of the description."""
        with torch.no_grad():
            outputs = self.run(image)
        instances = Instances((image.shape[1], image.shape[2]))
        names = list(self.description["outputs"])
        if isinstance(outputs, dict):  # scripted
            outputs = [outputs[FIELDS[name]] for name in names]
        for name, values in zip(names, outputs, strict=True):
            instances.set(FIELDS[name], Boxes(values) if name == "boxes" else values)
        return instances

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As a detector of detectron2: from `image`, `height` and `width` to `instances` in pixels of that size."""
        found = [(self.find(entry["image"].to(torch.uint8)), entry) for entry in batch]
        return [
            {"instances": detector_postprocess(instances, entry["height"], entry["width"])}
            for instances, entry in found
        ]


def _open_torchscript(path: Path) -> tuple[Run, str | bytes]:
    extra = {KEY: b""}
    with warnings.catch_warnings():
        # The user has chosen TorchScript.
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is (deprecated|not supported)")
        module = torch.jit.load(str(path), _extra_files=extra)
    device = next(module.parameters(), torch.empty(0)).device
    return lambda image: module(image.to(device)), extra[KEY]


def _open_onnx(path: Path) -> tuple[Run, str | bytes]:
    onnxruntime = _runtime("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors only: it warns on every start about nodes that it can't optimize.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    names = [output.name for output in session.get_outputs()]
    return lambda image: [
        torch.from_numpy(output) for output in session.run(names, {"image": image.cpu().numpy()})
    ], description


def _open_openvino(path: Path) -> tuple[Run, str | bytes]:
    openvino = _runtime("openvino", "openvino")
    core = openvino.Core()
    model = core.read_model(path)
    # Metadata of ONNX files, also after their conversion.
    place = ["framework", KEY]
    text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else ""
    options = {
        # OpenVINO's own default is bfloat16 where the CPU supports it, which changes the detections.
        "INFERENCE_PRECISION_HINT": HINTS.get(read_description(text, path)["precision"], "f32"),
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Compiling takes seconds to minutes.
        "CACHE_DIR": str(Path(get_cache_dir(), "openvino")),
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    names = [output.get_any_name() for output in model.outputs]

    def run(image: Tensor) -> list[Tensor]:
        request.infer({"image": image.cpu().numpy()})
        return [torch.from_numpy(request.get_tensor(name).data.copy()) for name in names]

    return run, text


def _runtime(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError("export.no_runtime", f"{name} is not installed: pip install 'se_detection[{extra}]'") from error


# The runtimes of each kind of file, the default first.
RUNTIMES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".ts": ("torch",)}
OPEN: dict[str, Callable[[Path], tuple[Run, str | bytes]]] = {
    "onnxruntime": _open_onnx,
    "openvino": _open_openvino,
    "torch": _open_torchscript,
}
# OpenVINO's names of the precisions of :class:`~se_detection.export.exporter.Form`.
HINTS = {"bfloat16": "bf16", "float16": "f16"}
