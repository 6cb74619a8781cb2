"""tools/convert_weights.py and tools/train_net.py, run as commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer

from se_detection import UserError, model_zoo
from se_detection.checkpoint.convert_input import convert_input
from se_detection.data.toy import make_toy_dataset

from ..helpers import randomize_norms

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOLS / tool, *map(str, arguments)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def resnet18(tmp_path) -> dict[str, torch.Tensor]:
    """The weights of `resnet18.pth`, a file of timm's."""
    weights = randomize_norms(timm.create_model("resnet18")).state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    return weights


def test_convert_verify_and_load(tmp_path, resnet18) -> None:
    flags = ["resnet18.pth", "--source", "timm", "--depth", 18, "--output", "out.pth", "--verify"]
    done = run("convert_weights.py", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert "INPUT.FORMAT RGB" in done.stdout
    for stage in ("res2", "res3", "res4", "res5"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(stage)]
        assert all(float(error) <= 1e-5 for error in line.split()[1:])
        assert len(line.split()) == 3
    cfg = model_zoo.get_config("Toy/faster_rcnn_R_18_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = model_zoo.build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "out.pth"))
    assert torch.equal(model.backbone.bottom_up.res5[1].conv2.weight, resnet18["layer4.1.conv2.weight"])


def test_errors_end_with_one_line(tmp_path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>404</title>")
    done = run("convert_weights.py", tmp_path, "page.pth", "--source", "timm", "--output", "out.pth")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: page.pth is a web page (such as a server's error page), not weights; get the file")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("missing.pth", "timm", r"there is no file missing\.pth \(looked for in "),
        ("weights/missing", "timm", "there is no file weights/missing"),
        ("given.pth", None, "source: name the project that given.pth comes from"),
        ("legacy_seresnet50.in1k", "timm", "source: timm, but legacy_seresnet50.in1k has the source timm-legacy"),
        ("vgg16", None, "timm://vgg16: its layers differ"),
    ],
)
def test_invalid_inputs_are_refused(tmp_path, monkeypatch, name, source, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.pth").touch()
    with pytest.raises(UserError, match=message):
        convert_input(name, source)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("there.pth", "there.pth already exists"),
        ("out.txt", "out.txt: the name must end with .pth or .safetensors"),
        ("none/out.pth", "none/out.pth: there is no folder none"),
    ],
)
def test_the_output_is_checked_first(tmp_path, monkeypatch, run_script, capsys, output, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pth").touch()
    with pytest.raises(SystemExit):
        run_script("convert_weights.py", "missing.pth", "--source", "timm", "--output", output)
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_plain_weights_in_an_se_config_need_a_flag(tmp_path, resnet18) -> None:
    for split in ("train", "val"):
        make_toy_dataset(tmp_path, split=split, count=4)
    data = [
        part
        for split in ("train", "val")
        for part in (
            f"--{split}-json",
            tmp_path / "annotations" / f"{split}.json",
            f"--{split}-images",
            tmp_path / split,
        )
    ]
    assert (
        run("convert_weights.py", tmp_path, "resnet18.pth", "--source", "timm", "--output", "out.pth").returncode == 0
    )
    overrides = [
        *("MODEL.WEIGHTS", "out.pth", "INPUT.FORMAT", "RGB", "MODEL.FPN.OUT_CHANNELS", "8"),
        *("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"),
        *("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", "run"),
    ]
    config = ["--config-file", model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")]
    refused = run("train_net.py", tmp_path, *config, *data, *overrides)
    assert refused.returncode == 2
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("error: the weights don't fit the config: of the backbone's")
    assert (
        "the file's backbone is plain and the config's has SE, which helps a detector only if its backbone was" in line
    )
    allowed = run("train_net.py", tmp_path, "--allow-partial-backbone", *config, *data, *overrides)
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["allow_partial_backbone"] is True
    assumptions = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["assumptions"]
    assert (assumptions["channel_order"], assumptions["se_reduction"]) == ("RGB", [16, 16, 16, 16])
