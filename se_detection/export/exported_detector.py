"""Runs a detector that se-det export wrote."""

from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..errors import UserError
from .metadata import FIELDS, KEY, read_outputs


class ExportedDetector:
    """A detector in TorchScript (on the device of its weights) or ONNX (with onnxruntime, on the CPU).

    Args:
        path: a `.ts` or `.onnx` file. TorchScript can run code: only open files that you trust.

    Raises:
        UserError: the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.onnx = path.suffix == ".onnx"
        try:
            self.module, description = (_open_onnx if self.onnx else _open_torchscript)(path)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise UserError(
                "export.unreadable", f"{path} can't be read: {next(iter(str(error).splitlines()), '')}; export it again"
            ) from error
        self.names = read_outputs(description, path)

    def __call__(self, image: Tensor) -> Instances:
        """Detections in an image: (3, H, W) of uint8, with the size and channel order of the description."""
        if self.onnx:
            outputs = map(torch.from_numpy, self.module.run(self.names, {"image": image.cpu().numpy()}))
        else:
            with torch.no_grad():
                outputs = self.module(image)
        instances = Instances((image.shape[1], image.shape[2]))
        if isinstance(outputs, dict):  # scripted
            outputs = [outputs[FIELDS[name]] for name in self.names]
        for name, values in zip(self.names, outputs, strict=True):
            instances.set(FIELDS[name], Boxes(values) if name == "boxes" else values)
        return instances


def _open_torchscript(path: Path) -> tuple[Any, str | bytes]:
    extra = {KEY: b""}
    module = torch.jit.load(str(path), _extra_files=extra)
    return module, extra[KEY]


def _open_onnx(path: Path) -> tuple[Any, str | bytes]:
    import onnxruntime  # optional, see `export_runs.forms`

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors only: it warns on every start about nodes that it can't optimize.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map.get(KEY, "")
