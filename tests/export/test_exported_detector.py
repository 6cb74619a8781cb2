import json

import pytest
import torch

from se_detection.errors import UserError
from se_detection.export.exported_detector import ExportedDetector
from se_detection.export.metadata import MEANING, Description

DESCRIPTION = Description(
    format="onnx",
    precision="float32",
    detector="run: Faster R-CNN",
    weights_sha256="0" * 64,
    channel_order="BGR",
    pixel_mean=(103.5, 116.25, 123.75),
    pixel_std=(1.0, 1.0, 1.0),
    multiple=32,
    shortest_side=800,
    longest_side=1333,
    classes=((1, "cell"), (7, "Zelle – ü")),
    outputs=MEANING,
)


def test_description_round_trip() -> None:
    text = DESCRIPTION.to_json()
    assert Description.from_json(text, "d.onnx") == DESCRIPTION
    assert json.loads(text)["classes"][1] == {"id": 7, "name": "Zelle – ü"}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"input": 3}', DESCRIPTION.to_json()[:-20], "[" * 100000])
def test_invalid_descriptions_are_rejected(text) -> None:
    with pytest.raises(UserError, match=r"^d\.onnx was not written by se-det export, or is damaged; export it again$"):
        Description.from_json(text, "d.onnx")


@pytest.mark.parametrize("name", ["d.ts", "d.onnx"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 100], ids=["empty", "text"])
def test_other_files_are_rejected(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} can't be read as (TorchScript|ONNX)"):
        ExportedDetector(tmp_path / name)


def test_other_torchscript_is_rejected(tmp_path) -> None:
    torch.jit.trace(torch.nn.Identity(), torch.zeros(1)).save(str(tmp_path / "d.ts"))
    with pytest.raises(UserError, match=r"d\.ts was not written by se-det export"):
        ExportedDetector(tmp_path / "d.ts")
