"""Runs a detector that se-det export wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..errors import UserError
from .formats import MISSING_ONNX
from .metadata import FIELDS, KEY, Description


class ExportedDetector:
    """A detector in TorchScript (on the device of its weights) or ONNX (with onnxruntime, on the CPU).

    Args:
        path: a `.ts` or `.onnx` file. TorchScript can run code: only open files that you trust.

    Raises:
        UserError: the file can't be read, or onnxruntime is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.description, self.run = (_open_onnx if path.suffix == ".onnx" else _open_torchscript)(path)

    def __call__(self, image: Tensor) -> Instances:
        """Detections in an image: (3, H, W) of uint8, with the size and channel order of the description."""
        instances = Instances((image.shape[1], image.shape[2]))
        for name, values in self.run(image).items():
            instances.set(FIELDS[name], Boxes(values) if name == "boxes" else values)
        return instances


RunFunction = Callable[[Tensor], dict[str, Tensor]]


def _open_torchscript(path: Path) -> tuple[Description, RunFunction]:
    extra = {KEY: b""}
    try:
        module = torch.jit.load(str(path), _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} can't be read as TorchScript; export it again") from error
    description = Description.from_json(extra[KEY], path)

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs: Any = module(image)
        if isinstance(outputs, dict):  # scripted
            return {name: outputs[FIELDS[name]] for name in description.outputs}
        return dict(zip(description.outputs, outputs, strict=True))

    return description, run


def _open_onnx(path: Path) -> tuple[Description, RunFunction]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(MISSING_ONNX) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors only: it warns on every start about nodes that it can't optimize.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class
        raise UserError(f"{path} can't be read as ONNX: {str(error).splitlines()[0]}") from error
    description = Description.from_json(session.get_modelmeta().custom_metadata_map.get(KEY, ""), path)
    names = list(description.outputs)

    def run(image: Tensor) -> dict[str, Tensor]:
        outputs = session.run(names, {"image": image.cpu().numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, outputs, strict=True)}

    return description, run
