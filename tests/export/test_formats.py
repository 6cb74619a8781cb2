import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_detection.export.formats import OPSET, _addcmul_as_mul_and_add
from se_detection.modeling.ops.residual_gate import residual_gate


class Join(nn.Module):
    def forward(self, residual: Tensor, gate: Tensor, shortcut: Tensor) -> Tensor:
        return residual_gate(residual, gate, shortcut)


def export(inputs, path) -> list[str]:
    torch.onnx.export(Join(), inputs, path, opset_version=OPSET, input_names=["r", "g", "s"], dynamo=False)
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_residual_gate_is_mul_add_relu_in_onnx(dtype, tmp_path) -> None:
    shapes = ((2, 8, 5, 4), (2, 8, 1, 1), (2, 8, 5, 4))
    residual, gate, shortcut = inputs = tuple(torch.randn(shape).to(dtype) for shape in shapes)
    with _addcmul_as_mul_and_add():
        assert export(inputs, tmp_path / "gate.onnx") == ["Mul", "Add", "Relu"]
    session = onnxruntime.InferenceSession(str(tmp_path / "gate.onnx"), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, dict(zip("rgs", (tensor.numpy() for tensor in inputs), strict=True)))
    expected = F.relu(shortcut + residual * gate).numpy()
    assert out.dtype == expected.dtype
    # One rounding of the sum of two numbers, which is below 16.
    np.testing.assert_allclose(out, expected, rtol=0, atol=8 * float(torch.finfo(dtype).eps))
    # Outside the context, other exports are PyTorch's again.
    assert export(inputs, tmp_path / "other.onnx").count("Mul") == 2
