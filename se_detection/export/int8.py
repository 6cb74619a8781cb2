"""Static quantization to 8 bits with onnxruntime."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_whole
from .metadata import KEY, Description

# The last layers stay in float32: scores and box sides need more than 8 bits.
PRECISE = ("cls_score", "bbox_pred", "objectness_logits", "anchor_deltas", "predictor", "score_lowres")


def quantize(source: Path, path: Path, images: Iterable[Tensor], description: Description) -> None:
    """Writes an ONNX detector with convolutions and fully connected layers in 8 bits (QDQ, per channel).

    Args:
        source: the detector in float32.
        images: (3, H, W) of uint8 each, for calibration: they give the range of each map's values.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.remaining, None)
            return None if image is None else {"image": image.cpu().numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = [node for node in onnx.load(prepared).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        precise = [node.name for node in nodes if any(part in node.name for part in PRECISE)]
        quantize_static(
            str(prepared),
            str(quantized),
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=precise,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Without VNNI, sums of 8-bit by 8-bit products overflow.
            reduce_range=True,
        )
        content = onnx.load(quantized)
    onnx.helper.set_model_props(content, {KEY: json.dumps(description, indent=1)})
    write_whole(path, lambda file: file.write(content.SerializeToString()))
