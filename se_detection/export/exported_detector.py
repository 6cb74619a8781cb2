"""What tools/export.py wrote, run as its users run it."""

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
    """A detector in TorchScript (on the device of its weights) or ONNX (by onnxruntime, on the CPU).

    Args:
        path: of the file, `.ts` or `.onnx`. What it computes is run: take it from somebody whom you trust.

    Raises:
        UserError: it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.description, self.run = (_open_onnx if path.suffix == ".onnx" else _open_torchscript)(path)

    def __call__(self, image: Tensor) -> Instances:
        """What is found in (3, H, W) of uint8, resized and in the channel order that the description says."""
        found = Instances((image.shape[1], image.shape[2]))
        for name, values in self.run(image).items():
            found.set(FIELDS[name], Boxes(values) if name == "boxes" else values)
        return found


RunFunction = Callable[[Tensor], dict[str, Tensor]]


def _open_torchscript(path: Path) -> tuple[Description, RunFunction]:
    extra = {KEY: b""}
    try:
        module = torch.jit.load(str(path), _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} can't be read as TorchScript") from error
    description = Description.from_json(extra[KEY], path)

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found: Any = module(image)
        if isinstance(found, dict):  # scripted
            return {name: found[FIELDS[name]] for name in description.outputs}
        return dict(zip(description.outputs, found, strict=True))

    return description, run


def _open_onnx(path: Path) -> tuple[Description, RunFunction]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(MISSING_ONNX) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # What it can't optimise it says, on every start.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no class in common
        raise UserError(f"{path} can't be read as ONNX: {str(error).splitlines()[0]}") from error
    description = Description.from_json(session.get_modelmeta().custom_metadata_map.get(KEY, ""), path)
    names = list(description.outputs)

    def run(image: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"image": image.cpu().numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return description, run
