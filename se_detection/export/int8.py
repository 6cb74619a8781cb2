"""Static quantization of a detector in ONNX to 8 bits, with onnxruntime. OpenVINO runs the result too."""

import inspect
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .metadata import KEY, Description

# The last layers stay in float32: scores and box sides need more than 8 bits.
PRECISE = ("cls_score", "bbox_pred", "objectness_logits", "anchor_deltas", "predictor", "score_lowres")
LAYERS = ("Conv", "Gemm", "MatMul")
# Between the convolutions of the backbone and FPN: in float32, each would need conversions before and after it.
# Elsewhere these operators compute boxes.
JOINS = ("Add", "Mul", "MaxPool", "Resize", "GlobalAveragePool", "Sigmoid")
SUMS = ("avx512_vnni", "avx_vnni", "amx_int8")


class Quantizer:
    """Quantizes convolutions and fully connected layers (QDQ, weights per channel), with any layers left in float32.

    Args:
        source: the detector in float32.
        images: (3, H, W) of uint8 each, for calibration: they give the range of each map's values.
        folder: for temporary files, which must exist as long as this object.
    """

    def __init__(self, source: Path, images: Iterable[Tensor], folder: Path) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.images = [image.cpu().numpy() for image in images]
        self.prepared, self.quantized, self.ranges = (
            folder / name for name in ("prepared.onnx", "quantized.onnx", "ranges.json")
        )
        quant_pre_process(str(source), str(self.prepared), skip_symbolic_shape=True)
        nodes = onnx.load(self.prepared).graph.node
        self.layers = [
            node for node in nodes if node.op_type in LAYERS and not any(part in node.name for part in PRECISE)
        ]
        self.joins = [node.name for node in nodes if node.op_type in JOINS and node.name.startswith("/backbone")]

    def quantize(self, description: Description, float_layers: Sequence[str] = ()) -> Path:
        """The file of the quantized detector, in the folder; `float_layers` are layers that stay in float32."""
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        names = [node.name for node in self.layers if node.name not in float_layers]
        # onnxruntime 1.23, the last for Python 3.10, computes the ranges each time.
        has_cache = "calibration_cache_path" in inspect.signature(quantize_static).parameters
        quantize_static(
            str(self.prepared),
            str(self.quantized),
            _reader(self.images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *JOINS],
            nodes_to_quantize=names + self.joins,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=saturates(),
            **({"calibration_cache_path": self.ranges} if has_cache else {}),
        )
        content = onnx.load(self.quantized)
        onnx.helper.set_model_props(content, {KEY: json.dumps(description, indent=1)})
        onnx.save(content, self.quantized)
        return self.quantized

    def sensitivity(self) -> dict[str, float]:
        """The signal-to-noise ratio of each layer in decibels, the lowest first, after :meth:`quantize`.

        The noise is that of rounding the layer's input and its weights, measured on the first image.
        """
        from onnxruntime.quantization import qdq_loss_debug as debug

        saving = self.quantized.with_name("saving.onnx")
        debug.modify_model_output_intermediate_tensors(
            self.quantized, saving, op_types_for_saving=["QuantizeLinear", "DequantizeLinear"]
        )
        values = debug.collect_activations(str(saving), _reader(self.images[:1]))
        ratio = debug.compute_signal_to_quantization_noice_ratio
        activations = debug.create_activation_matching(values)
        # It logs an error for each bias of a layer that is used on several maps.
        logging.disable(logging.ERROR)
        weights = debug.create_weight_matching(str(self.prepared), str(self.quantized))
        logging.disable(logging.NOTSET)
        noise = {}
        for node in self.layers:
            activation, weight = (
                found.get(name) for found, name in zip((activations, weights), node.input, strict=False)
            )
            if activation and weight:
                pairs = (activation["pre_qdq"], activation["post_qdq"]), (weight["float"], weight["dequantized"])
                noise[node.name] = sum(10 ** (-ratio(*pair) / 10) for pair in pairs)
        return {name: -10 * math.log10(value) for name, value in sorted(noise.items(), key=lambda item: -item[1])}


def saturates() -> bool:
    """Whether sums of 8-bit by 8-bit products overflow on this CPU, so that weights must have 7 bits: without VNNI."""
    # Older versions of PyTorch have another function, or none.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not any(capabilities.get(name) for name in SUMS)


def _reader(images: Sequence[Any]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.remaining, None)
            return None if image is None else {"image": image}

    return Images()
