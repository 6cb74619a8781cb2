"""Files of all kinds that a user may name as weights."""

import collections
import json
import pickle
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from se_detection.checkpoint.convert import fitting_source
from se_detection.checkpoint.read_weights import read_checkpoint

from ..helpers import raises

WEIGHTS = {"stem.conv1.weight": torch.arange(6.0).reshape(2, 3), "linear.bias": torch.ones(4)}


def assert_weights(checkpoint: dict[str, object]) -> None:
    assert checkpoint["model"].keys() == WEIGHTS.keys()
    for key, tensor in WEIGHTS.items():
        assert torch.equal(checkpoint["model"][key], tensor)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_torch_files_with_any_suffix(tmp_path, is_zip, suffix) -> None:
    path = tmp_path / f"weights.{suffix}"
    contents = [
        WEIGHTS,
        collections.OrderedDict(WEIGHTS),
        {"model": WEIGHTS, "iteration": 7},
        {"state_dict": WEIGHTS, "meta": {"epoch": 1}},
        {f"module.{key}": value for key, value in WEIGHTS.items()},
    ]
    for content in contents:
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)
        checkpoint = read_checkpoint(path)
        assert_weights(checkpoint)
        assert checkpoint.get("iteration") == content.get("iteration")
    torch.save({"model_state": WEIGHTS}, path, _use_new_zipfile_serialization=is_zip)
    assert_weights(read_checkpoint(path))
    # pycls' names have no prefix.
    assert read_checkpoint(path)["matching_heuristics"]


class Wrapper(nn.Module):
    """A DDP (`module`), a torch.compile (`_orig_mod`) or a LightningModule (any name), as far as names go."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return timm.create_model("resnet18", channels=(8, 8, 8, 8), num_classes=2)


@pytest.mark.parametrize("name", ["model", "net", "encoder", "backbone", "module"])
def test_one_prefix_of_all_names_is_removed(tmp_path, caplog, resnet18, name) -> None:
    """An averaged model has a counter too."""
    path, expected = tmp_path / "weights.pth", resnet18.state_dict()
    for wrapped in (Wrapper(name, resnet18), Wrapper(name, Wrapper("_orig_mod", resnet18)), AveragedModel(resnet18)):
        torch.save({"model": wrapped.state_dict()}, path)
        caplog.clear()
        read = read_checkpoint(path)["model"]
        assert read.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in read.items())
        prefix = next(key for key in wrapped.state_dict() if "." in key).removesuffix("conv1.weight")
        assert f"without the prefix {prefix!r}" in caplog.text
    # Half of a network, or two networks, have no common prefix.
    both = nn.ModuleDict({"student": resnet18, "teacher": resnet18}).state_dict()
    torch.save(both, path)
    assert read_checkpoint(path)["model"].keys() == both.keys()


def test_weights_in_entries_of_other_names_are_found(tmp_path, caplog, resnet18) -> None:
    path, weights = tmp_path / "weights.pth", resnet18.state_dict()
    optimizer = torch.optim.SGD(resnet18.parameters(), lr=0.1, momentum=0.9)
    for content in (
        {"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": optimizer.state_dict()},
        {"epoch": 3, "net": weights, "best": torch.tensor(0.5), "optimizer": optimizer.state_dict()},
        {"model": {"state_dict": weights}},
        {"generator": {"module": weights}},
    ):
        torch.save(content, path)
        assert fitting_source(read_checkpoint(path)["model"]) == "timm"
    assert "entry generator" in caplog.text
    assert "entry net" in caplog.text
    torch.save({"student": weights, "teacher": weights}, path)
    with raises("weights.no_state_dict", "'student'"):
        read_checkpoint(path)


def test_the_moving_average_is_taken_if_asked_for(tmp_path, caplog, resnet18) -> None:
    """timm's train.py, torchvision's references, a LightningModule with both, and others with an average in a dict."""
    path, args = tmp_path / "weights.pth", Namespace(model="resnet18", lr=0.1)
    averaged = ModelEmaV3(resnet18, decay=0.5)
    for parameter in averaged.module.parameters():
        parameter.data += 1
    weights, average = resnet18.state_dict(), averaged.module.state_dict()
    for content, name in (
        ({"arch": "resnet18", "state_dict": weights, "args": args, "state_dict_ema": average}, "state_dict_ema"),
        ({"model": weights, "model_ema": AveragedModel(averaged.module).state_dict(), "args": args}, "model_ema"),
        ({"state_dict": nn.ModuleDict({"model": resnet18, "ema_model": averaged}).state_dict()}, "ema_model"),
        ({"net": weights, "ema": {"module": average, "updates": 7}}, "ema"),
    ):
        torch.save(content, path)
        for ema, expected in ((False, weights), (True, average)):
            caplog.clear()
            read = read_checkpoint(path, ema=ema)["model"]
            assert read.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in read.items())
            assert (f"took {name}, the moving average" in caplog.text) == ema
            assert (f"se-det convert --ema takes their moving average, {name}" in caplog.text) != ema
    torch.save({"state_dict_ema": average}, path)
    assert torch.equal(read_checkpoint(path)["model"]["conv1.weight"], average["conv1.weight"])
    torch.save(weights, path)
    with raises("weights.no_ema", path):
        read_checkpoint(path, ema=True)


@pytest.mark.parametrize(
    ("meta", "other"), [({}, "current_model_state"), ({"meta": {"mmengine_version": "0.10.7"}}, "ema_state_dict")]
)
def test_lightning_and_mmengine_save_the_average_as_the_model(tmp_path, caplog, resnet18, meta, other) -> None:
    """The callbacks `WeightAveraging.on_save_checkpoint` and `EMAHook.before_save_checkpoint` exchange the two."""
    average = resnet18.state_dict()
    weights = {key: tensor + 1 for key, tensor in average.items()}
    torch.save({**meta, "state_dict": average, other: weights}, tmp_path / "weights.pth")
    for ema in (False, True):
        read = read_checkpoint(tmp_path / "weights.pth", ema=ema)["model"]
        assert torch.equal(read["conv1.weight"], average["conv1.weight"])
    assert f"{other} has them without averaging" in caplog.text


def test_safetensors_files(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path)
    assert_weights(read_checkpoint(path))
    assert "assumptions" not in read_checkpoint(path)
    save_file(WEIGHTS, path, metadata={"assumptions": json.dumps({"depth": 50})})
    assert read_checkpoint(path)["assumptions"] == {"depth": 50}


def test_safetensors_headers_of_any_length(tmp_path) -> None:
    """The first bytes are the header's length: one of them is a pickle's first byte, another a zip's."""
    path = tmp_path / "weights.safetensors"
    for length in range(8):
        save_file(WEIGHTS, path, metadata={"comment": "-" * length * 32})
        assert_weights(read_checkpoint(path))
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    for spaces in range(256):
        header = content[8:end] + b" " * spaces
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
        assert load_file(path).keys() == WEIGHTS.keys()
        assert_weights(read_checkpoint(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_detectron2s_pickles(tmp_path, protocol) -> None:
    """In its zoo they are `{"model": ..., "__author__": ...}`, or from Caffe2, with or without `blobs`."""
    arrays = {key: value.numpy() for key, value in WEIGHTS.items()}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision", "best": np.float64(0.5)}, protocol))
    assert_weights(read_checkpoint(path))
    assert read_checkpoint(path)["best"] == 0.5
    swapped = {key: np.asfortranarray(value.astype(">f4")) for key, value in arrays.items()}
    for content in (swapped, {"blobs": arrays | {"linear.bias_momentum": np.zeros(4)}, "cfg": "TRAIN: ..."}):
        path.write_bytes(pickle.dumps(content, protocol))
        checkpoint = read_checkpoint(path)
        assert_weights(checkpoint)
        assert checkpoint["__author__"] == "Caffe2"
        assert checkpoint["matching_heuristics"]


def test_pickles_of_python_2_have_bytes_as_text(tmp_path) -> None:
    """detectron2 reads them as latin1."""
    array = np.array([1.5, -2.25], dtype=np.float32)
    (tmp_path / "old.pkl").write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + array.tobytes() + b"tbs."
    )
    assert torch.equal(read_checkpoint(tmp_path / "old.pkl")["model"]["a"], torch.from_numpy(array))


@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.safetensors", "weights.pkl"])
def test_truncated_files_are_refused(tmp_path, name) -> None:
    path = tmp_path / name
    weights = {"stem.conv1.weight": torch.randn(100, 100)}
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in weights.items()}))
    elif name.endswith(".safetensors"):
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "weights.pth")
    content = path.read_bytes()
    for part in (0.3, 0.9):
        path.write_bytes(content[: int(part * len(content))])
        with raises("weights.broken", path):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n", "not a weights file"),
    ],
)
def test_other_files_are_refused_with_their_kind(tmp_path, content, kind) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with raises("weights.not_weights", path, kind):
        read_checkpoint(path)


def test_other_zip_files_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.jpg", b"...")
    with raises("weights.broken", path):
        read_checkpoint(path)
