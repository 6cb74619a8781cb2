"""Writes TorchScript, ONNX and torch.export files."""

import copy
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..files import write_whole
from .graph import script, traceable
from .metadata import KEY, Description

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
# The first opset with RoIAlign as in detectron2 (aligned).
OPSET = 16
# Range of a side for torch.export, in multiples of the padding.
SMALLEST, LARGEST = 3, 128


def write_torchscript(
    path: Path, model: nn.Module, image: Tensor, description: Description, *, scripting: bool
) -> None:
    """Writes a detector, traced with an image or scripted.

    Args:
        image: (3, H, W), with at least one detection.

    Raises:
        UserError: the detector can't be scripted.
    """
    # Tracing warns hundreds of times about possible constants. The export is compared with the original afterwards.
    with _without_warnings():
        if scripting:
            module: Any = script(model)
        else:
            with torch.no_grad():
                module = torch.jit.trace(traceable(model, image, description["outputs"]), (image,), check_trace=False)
    extra = {KEY: json.dumps(description, indent=1).encode()}
    write_whole(path, lambda file: torch.jit.save(module, file, _extra_files=extra))


def write_onnx(path: Path, model: nn.Module, image: Tensor, description: Description) -> None:
    """Writes a detector with dynamic height and width, with the tracing exporter: detectors have loops and NMS.

    Args:
        image: (3, H, W), with at least one detection.
    """
    import onnx  # optional, see `export_runs.forms`

    names = list(description["outputs"])
    axes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}}
    buffer = io.BytesIO()
    module = traceable(model, image, names)
    keep_paddings(module)
    with _without_warnings(), _addcmul_as_mul_and_add():
        torch.onnx.export(
            module,
            (image,),
            buffer,  # type: ignore[arg-type]
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            dynamo=False,
        )
    content = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(content, {KEY: json.dumps(description, indent=1)})
    onnx.checker.check_model(content)
    write_whole(path, lambda file: file.write(content.SerializeToString()))


def place_onnx(source: Path, path: Path) -> None:
    """Copies an ONNX file to `path`; if that ends in `.xml`, as OpenVINO's IR, with the weights in a `.bin`."""
    if path.suffix != ".xml":
        _copy(source, path)
        return
    import openvino  # optional, see `export_runs.forms`

    weights = path.with_suffix(".bin")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder, path.name)
        openvino.save_model(openvino.Core().read_model(source), converted, compress_to_fp16=False)
        for part in (weights, path):
            _copy(converted.with_name(part.name), part)


def export_megabytes(path: Path) -> float:
    """The size of an export, in units of 2²⁰ bytes; OpenVINO's weights are in a file of their own."""
    files = {path, path.with_suffix(".bin")}
    return round(sum(file.stat().st_size for file in files if file.exists()) / 2**20, 1)


def _copy(source: Path, path: Path) -> None:
    write_whole(path, lambda file: file.write(source.read_bytes()))


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def keep_paddings(network: nn.Module) -> None:
    """Makes paddings with 0 paddings with the smallest positive number, in place.

    onnxruntime merges a padding with 0 into the max pool behind it, which pads with -inf (PadFusion; BiT's ResNets).
    """
    smallest = torch.finfo(next(network.parameters()).dtype).tiny
    for module in network.modules():
        if isinstance(module, nn.ConstantPad2d) and module.value == 0:
            module.value = smallest


def write_torch_export(path: Path, backbone: nn.Module, device: torch.device, description: Description) -> None:
    """Writes a detector's backbone and FPN, for any number of images with sides from :func:`smallest_side` to 4096.

    Args:
        backbone: takes (N, 3, H, W), normalized and padded to multiples of its `size_divisibility`; returns a
            dictionary of feature maps.
        device: of the backbone.
    """
    multiple = description["input"]["pad_to_multiples_of"]
    smallest = smallest_side(backbone, multiple) // multiple
    height, width = (torch.export.Dim(name, min=smallest, max=LARGEST) for name in ("height", "width"))
    sizes = {0: torch.export.Dim("images", min=1, max=1024), 2: multiple * height, 3: multiple * width}
    example = torch.zeros(2, 3, (smallest + 1) * multiple, (smallest + 2) * multiple, device=device)
    backbone = copy.deepcopy(backbone).eval()
    if isinstance(getattr(backbone, "top_block", None), LastLevelMaxPool):
        backbone.top_block = _EverySecond()
    with _without_warnings(), torch.no_grad():
        program = torch.export.export(backbone, (example,), dynamic_shapes=(sizes,), strict=False)
    extra = {KEY: json.dumps(description, indent=1)}
    write_whole(path, lambda file: torch.export.save(program, file, extra_files=extra))


def smallest_side(backbone: Any, multiple: int) -> int:
    """Smallest side in pixels: 96 for an FPN, 160 for RetinaNet's.

    torch.export specializes sides of 1, so the coarsest map must be larger.
    """
    coarsest: int = max(shape.stride for shape in backbone.output_shape().values())
    return max(SMALLEST, coarsest // multiple + 1) * multiple


class _EverySecond(LastLevelMaxPool):
    """The same pool by indexing.

    From the pool, torch.export concludes that a side must stay even, or odd; from a slice of channels-last memory too.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        rows, columns = (torch.arange(0, side, 2, device=x.device) for side in x.shape[2:])
        return [x.index_select(2, rows).index_select(3, columns)]


@contextmanager
def _addcmul_as_mul_and_add() -> Iterator[None]:
    """Within the context, addcmul is exported to ONNX as Mul and Add.

    PyTorch's exporter also multiplies by `value`, a float32 constant, which turns the rest of a float16 network into
    float32.
    """
    torch.onnx.register_custom_op_symbolic("aten::addcmul", _addcmul, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::addcmul", OPSET)  # type: ignore[attr-defined]


def _addcmul(graph: Any, x: Any, first: Any, second: Any, value: Any) -> Any:
    """`value` is ignored: it is 1 wherever this package calls addcmul."""
    return graph.op("Add", x, graph.op("Mul", first, second))
