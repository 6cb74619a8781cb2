"""The documentation as a new user follows it, from a folder that holds images and a JSON alone, up to the training."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

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
    preparing = [line for line in typed if line.startswith(("se-det check-data my_data", "se-det sample"))]
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


def test_yolos_lines_become_coco(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "my_data" / "photos"
    photos.mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (200, 100)).save(photos / f"{name}.jpg")
    (photos / "b.txt").write_text("1 0.5 0.5 0.1 0.2\n0 0.25 0.75 0.5 0.5\n")
    (block,) = (block for block in blocks("python") if "YOLO" in block.text)
    exec(compile(block.text, block.name, "exec"), {})
    coco = COCO(str(tmp_path / "my_data" / "all.json"))
    assert [coco.imgs[number]["file_name"] for number in (1, 2)] == ["a.jpg", "b.jpg"]
    assert coco.getAnnIds(imgIds=1) == []
    found = {coco.cats[item["category_id"]]["name"]: item["bbox"] for item in coco.imgToAnns[2]}
    assert found["bicycle"] == pytest.approx([90, 40, 20, 20])
    assert found["car"] == pytest.approx([0, 50, 100, 50])


def test_vocs_xml_becomes_coco(tmp_path, monkeypatch) -> None:
    """VOC's first pixel is 1, and its last one belongs to the box."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "bccd" / "BCCD"
    for folder in ("Annotations", "ImageSets/Main"):
        (source / folder).mkdir(parents=True)
    boxes = {"RBC": (1, 1, 200, 100), "Platelets": (11, 21, 30, 60), "WBC": (5, 5, 5, 5)}
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in boxes.items()
    )
    (source / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>200</width><height>100</height></size>{things}</annotation>"
    )
    for split, names in (("train", "a\n"), ("val", "")):
        (source / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    (block,) = (block for block in blocks("python") if "bndbox" in block.text)
    exec(compile(block.text, block.name, "exec"), {})
    coco = COCO(str(tmp_path / "bccd" / "train.json"))
    assert [(image["file_name"], image["width"], image["height"]) for image in coco.imgs.values()] == [
        ("a.jpg", 200, 100)
    ]
    found = {coco.cats[item["category_id"]]["name"]: item["bbox"] for item in coco.imgToAnns[1]}
    assert found == {"RBC": [0, 0, 200, 100], "Platelets": [10, 20, 20, 40]}
    assert not COCO(str(tmp_path / "bccd" / "val.json")).imgs
