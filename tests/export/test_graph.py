import onnxruntime
import pytest
import torch
from torch import nn

from se_detection.export.formats import write_onnx
from se_detection.export.graph import find_instances
from se_detection.export.int8 import Quantizer

from ..detectors.detectors import DETECTORS, build, small_config


@pytest.mark.slow
def test_onnx_retinanet_runs_without_detections_on_some_levels(tmp_path) -> None:
    """If no anchor of a level has a score above the threshold, there are no boxes to decode."""
    model = build(DETECTORS["retinanet"], small_config(DETECTORS["retinanet"])).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.5)
    blank = torch.zeros(3, 96, 128, dtype=torch.uint8)
    noise = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    model.test_score_thresh = 0.0
    with torch.no_grad():
        blank_score, noise_score = (find_instances(model, image).scores.max().item() for image in (blank, noise))
        assert blank_score < noise_score
        model.test_score_thresh = (blank_score + noise_score) / 2
        assert len(find_instances(model, blank)) == 0 < len(find_instances(model, noise))
    description = {"outputs": {"boxes": "", "scores": "", "classes": ""}}
    write_onnx(tmp_path / "d.onnx", model, noise, description)
    session = onnxruntime.InferenceSession(str(tmp_path / "d.onnx"), providers=["CPUExecutionProvider"])
    assert [len(values) for values in session.run(None, {"image": blank.numpy()})] == [0, 0, 0]
    boxes, scores, _ = (torch.from_numpy(values) for values in session.run(None, {"image": noise.numpy()}))
    with torch.no_grad():
        expected = find_instances(model, noise)
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-2)
    # The blank image also works after onnxruntime has optimized the graph.
    path = Quantizer(tmp_path / "d.onnx", [noise, blank], tmp_path).quantize(description)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [len(values) for values in session.run(None, {"image": blank.numpy()})] == [0, 0, 0]
