"""tools/convert_weights.py and tools/train_net.py, run as a user would."""

import json

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer

from se_detection import model_zoo
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.read_weights import read_checkpoint
from se_detection.data.toy import make_toy_dataset

from ..helpers import raises, randomize_norms


@pytest.fixture
def resnet18(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """The weights of `resnet18.pth`, a file of timm's."""
    monkeypatch.chdir(tmp_path)
    weights = randomize_norms(timm.create_model("resnet18")).state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    return weights


@pytest.mark.slow
def test_convert_verify_and_load(tmp_path, resnet18, run_script, capsys) -> None:
    flags = ["resnet18.pth", "--source", "timm", "--depth", 18, "--output", "out.pth", "--verify"]
    run_script("convert_weights.py", *flags)
    output = capsys.readouterr().out
    assert "INPUT.FORMAT RGB" in output
    assert "timm's resnet18:" in output
    for stage in ("res2", "res3", "res4", "res5"):
        (line,) = [line for line in output.splitlines() if line.startswith(stage)]
        assert all(float(error) <= 1e-5 for error in line.split()[1:])
        assert len(line.split()) == 3
    cfg = model_zoo.get_config("Toy/faster_rcnn_R_18_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = model_zoo.build_model(cfg)
    DetectionCheckpointer(model).load("out.pth")
    assert torch.equal(model.backbone.bottom_up.res5[1].conv2.weight, resnet18["layer4.1.conv2.weight"])


def test_convert_takes_the_moving_average(resnet18, run_script) -> None:
    average = {key: tensor + 1 for key, tensor in resnet18.items()}
    torch.save({"state_dict": resnet18, "state_dict_ema": average}, "resnet18.pth")
    run_script("convert_weights.py", "resnet18.pth", "--source", "timm", "--ema", "--output", "out.pth")
    assert torch.equal(read_checkpoint("out.pth")["model"]["stem.conv1.weight"], average["conv1.weight"])
    with raises("weights.no_ema", "seresnet50"):
        convert_input("seresnet50", ema=True)


@pytest.mark.parametrize(
    ("name", "output", "code"),
    [
        ("page.pth", "out.pth", "weights.not_weights"),
        ("missing.pth", "there.pth", "output.exists"),
        ("missing.pth", "out.txt", "output.suffix"),
        ("missing.pth", "none/out.pth", "output.no_folder"),
    ],
)
def test_errors_end_with_one_line(tmp_path, monkeypatch, run_script, capsys, name, output, code) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pth").touch()
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(SystemExit, match="2"):
        run_script("convert_weights.py", name, "--source", "timm", "--output", output)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"[{code}]")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("name", "source", "code"),
    [
        ("missing.pth", "timm", "weights.not_found"),
        ("weights/missing", "timm", "weights.not_found"),
        ("given.pth", None, "weights.no_source"),
        ("vgg16", None, "weights.unsupported_network"),
    ],
)
def test_invalid_inputs_are_refused(tmp_path, monkeypatch, name, source, code) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.pth").touch()
    with raises(code, name):
        convert_input(name, source)


@pytest.mark.slow
def test_plain_weights_in_an_se_config_need_a_flag(tmp_path, resnet18, run_script, capfd) -> None:
    flags = ["--config-file", "Toy/faster_rcnn_SE_R_18_FPN"]
    for split in ("train", "val"):
        make_toy_dataset(tmp_path, split=split, count=4)
        flags += [f"--{split}-json", f"annotations/{split}.json", f"--{split}-images", split]
    convert_input("resnet18.pth", "timm").save(tmp_path / "out.pth")
    flags += [
        # Gates that start as the identity may be missing.
        *("MODEL.SE.INIT", "default"),
        *("MODEL.WEIGHTS", "out.pth", "INPUT.FORMAT", "RGB", "MODEL.FPN.OUT_CHANNELS", "8"),
        *("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"),
        *("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", "run"),
    ]
    with pytest.raises(SystemExit, match="2"):
        run_script("train_net.py", *flags)
    assert "[weights.partial_backbone]" in capfd.readouterr().err
    run_script("train_net.py", "--allow-partial-backbone", *flags)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["allow_partial_backbone"] is True
    assumptions = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["assumptions"]
    assert (assumptions["channel_order"], assumptions["se_reduction"]) == ("RGB", [16, 16, 16, 16])
