"""The documentation as a new user follows it, from a folder that holds images and a JSON alone; made small."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from se_detection.data.toy import make_toy_dataset

from .pages import ROOT, blocks, commands

# Overrides that make a detector of the pages small enough to train in seconds; appended to a page's command.
SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.WARMUP_ITERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
]
MADE_SMALL = {"se-det train": SMALL, "se-det export": ["--images", "1"]}
IMAGES, KEPT_APART = 12, 5
# In this order; other blocks are run by their tools' own tests.
FOLLOWED = (
    ("docs/YOUR_DATA.md", "se-det check-data my_data/all.json"),
    ("docs/YOUR_DATA.md", "se-det sample"),
    ("docs/YOUR_DATA.md", "se-det check-data my_data/train.json"),
    ("docs/YOUR_DATA.md", "for model in R SE_R; do\n  se-det train --config-file COCO-Detection"),
    ("docs/YOUR_DATA.md", "se-det compare --baseline output/R"),
    ("docs/DEPLOYING.md", "from se_detection import SEPredictor"),
    ("docs/EXPORT.md", "se-det export --run output/SE_R --format onnx --output exported"),
)


@pytest.fixture(scope="module")
def folder(module_path) -> Path:
    """A folder with `my_data/photos`, `my_data/all.json` and links to folders of the checkout."""
    for name in ("tools", "configs", "examples"):
        (module_path / name).symlink_to(ROOT / name)
    json_file = make_toy_dataset(module_path / "toy", split="train", count=IMAGES)
    (module_path / "my_data").mkdir()
    (module_path / "toy" / "train").rename(module_path / "my_data" / "photos")
    json_file.rename(module_path / "my_data" / "all.json")
    shutil.copy(next((module_path / "my_data" / "photos").iterdir()), module_path / "street.jpg")
    return module_path


def typed(page: str, part: str) -> list[str | list[str]]:
    """What a user types who comes to the block with that in it."""
    (block,) = (block for block in blocks("bash", "python") if block.page == ROOT / page and part in block.text)
    if block.language == "python":
        return [block.text]
    found = []
    for command in commands(block.text):
        program, *words = shlex.split(command, comments=True)
        assert program in ("se-det", "python", "pip")
        if program != "pip":
            # A page's 200 images; and OUTPUT_DIR is the last of its overrides, which stays.
            words = [str(KEPT_APART) if word == "200" else word for word in words]
            line = [program, *words] if program == "se-det" else words
            found.append([*line, *MADE_SMALL.get(" ".join(line[:2]), [])])
    return found


@pytest.fixture(scope="module")
def printed(folder) -> str:
    """What the followed blocks print, all in one process: a training leaves its marks there."""
    lines = [line for page, part in FOLLOWED for line in typed(page, part)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("typist.py")],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


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


def test_the_split_is_a_split(folder, printed) -> None:
    train, val, whole = (
        {image["id"] for image in json.loads((folder / "my_data" / f"{name}.json").read_text())["images"]}
        for name in ("train", "val", "fixed")
    )
    assert (len(val), len(whole)) == (KEPT_APART, IMAGES)
    assert train | val == whole
    assert not train & val


def test_both_models_are_trained_and_compared(folder, printed) -> None:
    gates = {}
    for model in ("R", "SE_R"):
        run = folder / "output" / model
        assert json.loads((run / "inference" / "results.json").read_text())["bbox"]
        weights = torch.load(run / "model_final.pth", weights_only=True)["model"]
        gates[model] = sum(".se.fc1.weight" in key for key in weights)
    assert gates == {"R": 0, "SE_R": 8}
    verdict = json.loads((folder / "output" / "comparison.json").read_text())["verdict"]
    assert verdict in printed
    assert verdict.split(" (")[0] in (folder / "output" / "report.html").read_text()
    assert len(list((folder / "output" / "SE_R" / "predictions" / "pictures").iterdir())) == IMAGES


def test_a_backbone_from_outside_is_built(tmp_path) -> None:
    """`narrow_backbone.py` and `narrow.yaml`, as far as `se-det train` builds it before anything is written."""
    page = ROOT / "docs" / "ADDING_A_BACKBONE.md"
    code, config = (block.text for block in blocks("python", "yaml") if block.page == page)
    (tmp_path / "narrow_backbone.py").write_text(code)
    (tmp_path / "narrow.yaml").write_text(config)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (command,) = (block.text for block in blocks("bash") if "narrow_backbone.py" in block.text)
    setting, program, *words = shlex.split(command)
    assert program == "se-det"
    name, _, value = setting.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "se_detection", *words, "MODEL.WEIGHTS", "none.pth"],
        cwd=tmp_path,
        env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # This check comes after the check of the backbone.
    assert "error: MODEL.WEIGHTS: there is no file none.pth" in done.stderr


def test_the_detector_leaves(folder, printed) -> None:
    weights = torch.load(folder / "output" / "SE_R" / "model_final.pth", weights_only=True)["model"]
    saved = torch.load(folder / "detector.pth", weights_only=True)["model"]
    assert all(torch.equal(saved[key], weights[key]) for key in weights)
    session = onnxruntime.InferenceSession(next((folder / "exported").glob("*.onnx")))
    image = np.asarray(Image.open(folder / "street.jpg")).transpose(2, 0, 1)
    assert len(session.run(["boxes"], {"image": np.ascontiguousarray(image)})[0]) > 0
