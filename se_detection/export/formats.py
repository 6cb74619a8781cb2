"""Files of TorchScript, ONNX and torch.export."""

import copy
import io
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..errors import UserError
from ..files import write_whole
from .graph import script, traceable
from .metadata import KEY, Description

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", "torch-export": ".pt2"}
# The first with RoIAlign as detectron2 has it.
OPSET = 16
# What torch.export is told that a side may be, in multiples of what images are padded to.
SMALLEST, LARGEST = 3, 128
MISSING_ONNX = "ONNX needs two packages more: pip install onnx onnxruntime"


def write_torchscript(
    path: Path, model: nn.Module, image: Tensor, description: Description, *, scripting: bool
) -> None:
    """Writes a detector, traced with an image or scripted.

    Args:
        image: (3, H, W), with something to be found.

    Raises:
        UserError: it can't be scripted.
    """
    with _quiet():
        if scripting:
            module: Any = script(model)
        else:
            with torch.no_grad():
                module = torch.jit.trace(traceable(model, image, description.outputs), (image,), check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(module, buffer, _extra_files={KEY: description.to_json().encode()})
    write_whole(path, lambda file: file.write(buffer.getbuffer()))


def write_onnx(path: Path, model: nn.Module, image: Tensor, description: Description) -> None:
    """Writes a detector with dynamic height and width, by the exporter that traces: detectors have loops and NMS.

    Args:
        image: (3, H, W), with something to be found.

    Raises:
        UserError: onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise UserError(MISSING_ONNX) from error
    names = list(description.outputs)
    axes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}}
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "detector.onnx")
        torch.onnx.export(
            traceable(model, image, names),
            (image,),
            file,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            dynamo=False,
        )
        content = onnx.load(file)
    onnx.helper.set_model_props(content, {KEY: description.to_json()})
    onnx.checker.check_model(content)
    write_whole(path, lambda file: file.write(content.SerializeToString()))


def write_torch_export(path: Path, backbone: nn.Module, device: torch.device, description: Description) -> None:
    """Writes a detector's backbone and FPN, for any number of images of :func:`smallest_side` to 4096 pixels a side.

    Args:
        backbone: (N, 3, H, W), normalised and padded to multiples of `description.multiple`, to a dictionary of maps.
        device: of the backbone.
    """
    multiple = description.multiple
    smallest = smallest_side(backbone, multiple) // multiple
    height, width = (torch.export.Dim(name, min=smallest, max=LARGEST) for name in ("height", "width"))
    sizes = {0: torch.export.Dim("images", min=1, max=1024), 2: multiple * height, 3: multiple * width}
    example = torch.zeros(2, 3, (smallest + 1) * multiple, (smallest + 2) * multiple, device=device)
    backbone = copy.deepcopy(backbone).eval()
    if isinstance(getattr(backbone, "top_block", None), LastLevelMaxPool):
        backbone.top_block = _EverySecond()
    with _quiet(), torch.no_grad():
        program = torch.export.export(backbone, (example,), dynamic_shapes=(sizes,), strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={KEY: description.to_json()})
    write_whole(path, lambda file: file.write(buffer.getbuffer()))


def smallest_side(backbone: Any, multiple: int) -> int:
    """Pixels: 96 of an FPN, 160 of RetinaNet's.

    Where the coarsest map had a side of 1, torch.export would take the network for another one.
    """
    coarsest: int = max(shape.stride for shape in backbone.output_shape().values())
    return max(SMALLEST, coarsest // multiple + 1) * multiple


class _EverySecond(LastLevelMaxPool):
    """The same by places: of the pool, torch.export concludes that a side must stay even, or odd.

    Of a slice too, where memory is channels-last.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        rows, columns = (torch.arange(0, side, 2, device=x.device) for side in x.shape[2:])
        return [x.index_select(2, rows).index_select(3, columns)]


@contextmanager
def _quiet() -> Iterator[None]:
    # Hundreds of lines on what a tracer takes for constant; the check that follows says whether it is.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
