"""Files of all kinds that a user may name as weights."""

import collections
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from se_detection.checkpoint.read_weights import read_checkpoint
from se_detection.errors import UserError

WEIGHTS = {"stem.conv1.weight": torch.arange(6.0).reshape(2, 3), "linear.bias": torch.ones(4)}


def assert_weights(checkpoint: dict[str, object]) -> None:
    assert checkpoint["model"].keys() == WEIGHTS.keys()
    for key, tensor in WEIGHTS.items():
        assert torch.equal(checkpoint["model"][key], tensor)


class MakesAFolder:
    """Unpickling it runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "pt", "pkl"])
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


def test_safetensors_files(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path)
    assert_weights(read_checkpoint(path))
    assert "assumptions" not in read_checkpoint(path)
    save_file(WEIGHTS, path, metadata={"assumptions": json.dumps({"depth": 50})})
    assert read_checkpoint(path)["assumptions"] == {"depth": 50}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_detectron2s_pickles(tmp_path, protocol) -> None:
    """In its zoo they are `{"model": ..., "__author__": ...}`, or from Caffe2, with or without `blobs`."""
    arrays = {key: value.numpy() for key, value in WEIGHTS.items()}
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision"}, protocol))
    assert_weights(read_checkpoint(path))
    for content in (arrays, {"blobs": arrays | {"linear.bias_momentum": np.zeros(4)}, "cfg": "TRAIN: ..."}):
        path.write_bytes(pickle.dumps(content, protocol))
        checkpoint = read_checkpoint(path)
        assert_weights(checkpoint)
        assert checkpoint["__author__"] == "Caffe2"
        assert checkpoint["matching_heuristics"]


@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.pkl"])
def test_code_is_not_run(tmp_path, name) -> None:
    path, made = tmp_path / name, tmp_path / "made"
    content = {"model": {}, "__author__": MakesAFolder(made)}
    if name == "weights.pkl":
        path.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name == "weights.pth")
    with pytest.raises(
        UserError, match=r"holds Python objects \(\w+\.mkdir\) that could run any code, and was not read"
    ):
        read_checkpoint(path)
    assert not made.exists()
    # Without the guard, it is run.
    torch.load(path, weights_only=False) if name != "weights.pkl" else pickle.loads(path.read_bytes())
    assert made.exists()


def test_arrays_of_objects_and_other_codecs_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"stem": np.array([{}], dtype=object)}, 2))
    with pytest.raises(UserError, match=r"truncated, broken or not a weights file \(an array of 'O8'\)"):
        read_checkpoint(path)
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.")
    with pytest.raises(UserError, match="truncated, broken or not a weights file"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.safetensors", "weights.pkl"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_truncated_files_are_refused(tmp_path, name, part) -> None:
    path = tmp_path / name
    weights = {"stem.conv1.weight": torch.randn(100, 100)}
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in weights.items()}))
    elif name.endswith(".safetensors"):
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=name == "weights.pth")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=f"{name} is truncated, broken or not a weights file") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", r"is a web page \(such as a server's error page\)"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n", "is not a weights file"),
    ],
)
def test_other_files_are_refused_with_their_kind(tmp_path, content, message) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def test_other_zip_files_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.jpg", b"...")
    with pytest.raises(UserError, match="truncated, broken or not a weights file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3, "best": 0.7}, "epoch is a int, not a tensor"),
        ({"model": torch.ones(1)}, "model is a Tensor, not a state dict"),
    ],
)
def test_contents_without_a_state_dict_are_refused(tmp_path, content, message) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"missing\.pth: No such file or directory"):
        read_checkpoint(tmp_path / "missing.pth")
