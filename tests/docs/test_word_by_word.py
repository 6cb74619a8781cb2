"""The documentation as a new user follows it, from a folder that holds images and a JSON alone, up to the training."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest

from se_detection.data.toy import make_toy_dataset
from se_detection_cli.main import main

from .pages import ROOT, blocks, commands

IMAGES, KEPT_APART = 12, 5
PAGE = ROOT / "docs" / "YOUR_DATA.md"


def type_in(monkeypatch, command: str, *overrides: str) -> int:
    """Runs a command of a page in this process; returns the exit code."""
    words = shlex.split(command, comments=True)
    assert words[0] == "se-det"
    # A page's 200 images.
    monkeypatch.setattr(sys, "argv", [str(KEPT_APART) if word == "200" else word for word in words] + [*overrides])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_your_data(tmp_path, monkeypatch, capsys) -> None:
    """Checks and splits the data; each training is right but for its weights, which are checked last."""
    monkeypatch.chdir(tmp_path)
    json_file = make_toy_dataset(tmp_path / "toy", split="train", count=IMAGES)
    Path("my_data").mkdir()
    Path("toy", "train").rename("my_data/photos")
    json_file.rename("my_data/all.json")
    typed = [line for block in blocks("bash") if block.page == PAGE for line in commands(block.text)]
    preparing = [line for line in typed if line.startswith(("se-det check-data my_data", "se-det sample my_data"))]
    assert len(preparing) >= 3
    for command in preparing:
        assert type_in(monkeypatch, command) == 0, command
    train, val, whole = (
        {image["id"] for image in json.loads(Path("my_data", f"{name}.json").read_text())["images"]}
        for name in ("train", "val", "fixed")
    )
    assert (len(val), len(whole)) == (KEPT_APART, IMAGES)
    assert train | val == whole
    assert not train & val
    training = [line for line in typed if line.startswith("se-det train") and "my_data/train.json" in line]
    assert {line.split()[-1] for line in training} == {"output/R", "output/SE_R"}
    for command in training:
        capsys.readouterr()
        assert type_in(monkeypatch, command, "MODEL.WEIGHTS", "none.pth") == 2
        assert "none.pth" in capsys.readouterr().err, command


def test_a_backbone_from_outside_is_built(tmp_path, monkeypatch, capsys) -> None:
    """`narrow_backbone.py` and `narrow.yaml`, as far as `se-det train` builds it before anything is written."""
    page = ROOT / "docs" / "ADDING_A_BACKBONE.md"
    code, config = (block.text for block in blocks("python", "yaml") if block.page == page)
    (tmp_path / "narrow_backbone.py").write_text(code)
    (tmp_path / "narrow.yaml").write_text(config)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (command,) = (block.text for block in blocks("bash") if "narrow_backbone.py" in block.text)
    setting, _, command = command.partition(" ")
    assert setting == "DETECTRON2_ENV_MODULE=narrow_backbone.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("narrow_backbone")
    assert type_in(monkeypatch, command, "MODEL.WEIGHTS", "none.pth") == 2
    # This check comes after the check of the backbone.
    assert "none.pth" in capsys.readouterr().err
