import onnxruntime
import torch
from torch import nn

from se_detection.export.formats import write_onnx
from se_detection.export.graph import find
from se_detection.export.int8 import quantise
from se_detection.export.metadata import Description

from ..detectors.detectors import DETECTORS, build, small_config


def test_a_dense_detector_that_finds_nothing_on_some_levels_runs_in_onnx(tmp_path) -> None:
    """Where no anchor of a level has a score above the threshold, there are no boxes to decode."""
    model = build(DETECTORS["retinanet"], small_config(DETECTORS["retinanet"])).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.5)
    blank = torch.zeros(3, 96, 128, dtype=torch.uint8)
    noise = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    model.test_score_thresh = 0.0
    with torch.no_grad():
        most, best = (find(model, image).scores.max().item() for image in (blank, noise))
        assert most < best
        model.test_score_thresh = (most + best) / 2
        assert len(find(model, blank)) == 0 < len(find(model, noise))
    description = Description(
        format="onnx",
        precision="float32",
        detector="",
        weights_sha256="",
        channel_order="RGB",
        shortest_side=96,
        longest_side=128,
        classes=((1, "a"), (2, "b")),
        outputs={"boxes": "", "scores": "", "classes": ""},
    )
    write_onnx(tmp_path / "d.onnx", model, noise, description)
    session = onnxruntime.InferenceSession(str(tmp_path / "d.onnx"), providers=["CPUExecutionProvider"])
    assert [len(values) for values in session.run(None, {"image": blank.numpy()})] == [0, 0, 0]
    boxes, scores, _ = (torch.from_numpy(values) for values in session.run(None, {"image": noise.numpy()}))
    with torch.no_grad():
        expected = find(model, noise)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-2)
    # It runs the blank one too, after onnxruntime has made the graph simpler.
    quantise(tmp_path / "d.onnx", tmp_path / "int8.onnx", [noise, blank], description)
    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    assert [len(values) for values in session.run(None, {"image": blank.numpy()})] == [0, 0, 0]
