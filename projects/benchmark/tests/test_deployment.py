import pytest

from tests.helpers import fewer_blocks

from ..deployment import Deployment
from ..run import run_benchmark


@pytest.mark.slow
def test_whole_detectors_in_other_runtimes_are_timed_in_the_same_rounds(make_case, monkeypatch) -> None:
    monkeypatch.setattr("projects.benchmark.deployment.Deployment._process_memory", lambda *_: 1000)
    names = ["onnxruntime-int8", "openvino-bf16"]
    # The exported detectors have SE.
    with fewer_blocks((1, 1, 1, 1)):
        result = run_benchmark([make_case(part="detector", width=96)], names, rounds=2)
    assert result["skipped"] == []
    rows = {row["arm"]: row for row in result["rows"]}
    assert list(rows) == ["stock", *names]
    assert all((row["size"], row["width"], row["memory_ratio"]) == (64, 96, 1) for row in rows.values())
    # With one block in each stage, ResNet-18 has 5 million weights, of a byte or of four.
    assert 4.5 < rows["onnxruntime-int8"]["megabytes"] < 9
    assert 18 < rows["openvino-bf16"]["megabytes"] < 25


def test_memory_is_that_of_a_process_without_torch(make_case, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["image"], ["out"])
    values = [info(name, onnx.TensorProto.UINT8, [3, 64, 96]) for name in ("image", "out")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    path = tmp_path / "d.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=9), path)
    deployment = Deployment(make_case(part="detector", width=96), None, evaluate=False)
    assert deployment.images[0].shape == (3, 64, 96)
    # numpy and onnxruntime; torch alone takes more than 300 MB.
    assert 30e6 < deployment._process_memory(path) < 200e6
