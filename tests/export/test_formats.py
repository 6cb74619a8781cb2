import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se_detection.export.formats import OPSET, _addcmul_as_mul_and_add, keep_paddings
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


def test_onnxruntime_does_not_merge_a_padding_into_a_max_pool(tmp_path) -> None:
    """It does so for paddings with 0, although a max pool's own are -inf: microsoft/onnxruntime#24737."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2)).eval()
    nn.init.constant_(network[0].bias, -5)
    image = torch.rand(1, 3, 7, 9)
    with torch.no_grad():
        expected = network(image).numpy()
        keep_paddings(network)
        torch.onnx.export(network, (image,), tmp_path / "pool.onnx", opset_version=OPSET, dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "pool.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    # Its own would give differences above 1.
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)
