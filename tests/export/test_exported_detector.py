import json
from pathlib import Path

import pytest
import torch

from se_detection import model_zoo
from se_detection.export.exported_detector import ExportedDetector
from se_detection.export.metadata import MEANING, describe, read_description

from ..helpers import raises

CATEGORIES = {1: "cell", 7: "Zelle – ü"}


def test_the_description_says_how_to_prepare_an_image() -> None:
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    found = describe(cfg, CATEGORIES, detector="run: Faster R-CNN", weights_sha256="0" * 64, outputs=MEANING)
    assert found["classes"] == [{"id": 1, "name": "cell"}, {"id": 7, "name": "Zelle – ü"}]
    assert found["input"] == {"shape": [3, "height", "width"], "dtype": "uint8", "channel_order": "BGR"}
    assert (found["resize"]["shortest_side"], found["resize"]["longest_side"]) == (96, 1333)
    assert read_description(json.dumps(found), "d.onnx") == found


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"outputs": 3}', '{"outputs": {}}', '{"outputs": {', b"\xff", "[" * 100000]
)
def test_invalid_descriptions_are_rejected(text) -> None:
    with raises("export.not_an_export", "d.onnx"):
        read_description(text, "d.onnx")


@pytest.mark.parametrize("name", ["d.ts", "d.onnx", "d.xml"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 100], ids=["empty", "text"])
def test_other_files_are_rejected(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with raises("export.unreadable", name):
        ExportedDetector(tmp_path / name)


def test_other_torchscript_is_rejected(tmp_path) -> None:
    torch.jit.trace(torch.nn.Identity(), torch.zeros(1)).save(str(tmp_path / "d.ts"))
    with raises("export.not_an_export", "d.ts"):
        ExportedDetector(tmp_path / "d.ts")


@pytest.mark.parametrize(("name", "runtime"), [("d.pt2", None), ("d.onnx", "torch"), ("d.ts", "openvino")])
def test_runtimes_run_their_own_files(name, runtime) -> None:
    with raises("export.runtime", name):
        ExportedDetector(Path(name), runtime)
