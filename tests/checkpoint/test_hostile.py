"""Hostile and broken weights files end with a one-line error or are read; their code is never run."""

import hashlib
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from se_detection import UserError
from se_detection.checkpoint.read_weights import MAX_TENSORS, read_checkpoint
from se_detection.checkpoint.weights_file import check_download
from se_detection.runs.checkpoints import is_whole, newest_checkpoint

from ..fuzzing import Tally, examples
from ..helpers import raises

WEIGHTS = {"stem.conv1.weight": torch.randn(4, 3, 3, 3), "stem.conv1.norm.num_batches_tracked": torch.tensor(3)}
KINDS = ("zip", "legacy", "safetensors", "pickle2", "pickle5")


class CallOnLoad:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def write(path: Path, kind: str, content: Any) -> Path:
    if kind == "safetensors":
        save_file(content, path, metadata={"format": "pt", "assumptions": json.dumps({"depth": 18})})
    elif kind.startswith("pickle"):
        if isinstance(content, dict):
            content = {
                key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in content.items()
            }
        path.write_bytes(pickle.dumps(content, int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def read(path: Path) -> dict[str, torch.Tensor]:
    content = read_checkpoint(path)
    size = path.stat().st_size
    for tensor in content["model"].values():
        assert tensor.numel() * tensor.itemsize <= size
        assert tensor.layout is torch.strided
        assert not tensor.is_floating_point() or tensor.float().isfinite().all()
    return content["model"]


PIECES = [
    *(b"", b"\0", b".", b"cos\nsystem\n", b"\x80\x04\x95\xff", b"(", b"}", b"r\xff\xff\xff\x3f", b"R", b"b", b"\x93"),
    *(b"0", b"\x81", b"t", b"NNb", b"\xff" * 8, b"PK\x05\x06", b"PK\x01\x02", b"\0\0\0\0\0\0\0\x80", b'"F64"'),
    *(b'"F8_E4M3"', b"[999999999,999999999]", b"-1", b"1e9", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 8),
]


@st.composite
def corrupted(draw: Any, data: bytes) -> bytes:
    """A file with pieces removed, inserted or overwritten."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)))
        end = begin + draw(st.sampled_from([0, 1, len(piece), len(piece), len(content)]))
        content[begin:end] = piece
    return bytes(content)


def test_corrupted_files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    whole = {kind: write(path, kind, WEIGHTS).read_bytes() for kind in KINDS}
    tally = Tally("weights files")

    @examples(60)
    @given(st.sampled_from(KINDS).flatmap(lambda kind: corrupted(whole[kind])))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        tally.refused(read, path)
        assert path.read_bytes() == data

    started = time.monotonic()
    check()
    assert time.monotonic() - started < 0.5 * sum(tally.counts.values())
    assert os.listdir(tmp_path) == ["weights.pth"]
    assert tally.counts["refused"]
    assert tally.counts["read"]


PLACES = {
    "all": lambda call: call,
    "author": lambda call: {"model": {}, "__author__": call},
    "assumptions": lambda call: {"model": {}, "assumptions": {"depth": [call]}},
    "tensor": lambda call: {"stem.conv1.weight": call},
    "deep": lambda call: {"state_dict": {}, "epoch": {1: {2: [3, (call,)]}}},
    "array": lambda call: {"stem.conv1.weight": np.array([call], dtype=object)},
}
CALLS = {
    "system": lambda made: CallOnLoad(os.system, f"mkdir {made}"),
    "eval": lambda made: CallOnLoad(eval, f"__import__('os').mkdir({made!r})"),
    "getattr": lambda made: CallOnLoad(getattr, CallOnLoad(__import__, "os"), "mkdir"),
    "open": lambda made: CallOnLoad(open, made, "w"),
    "numpy": lambda made: CallOnLoad(np.save, made, 1),
    "mkdir": lambda made: CallOnLoad(os.mkdir, made),
}


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle2", "pickle5"])
def test_code_in_any_place_is_not_run(tmp_path, kind) -> None:
    made, path = tmp_path / "made", tmp_path / "weights.pth"
    for place, call in [(place, "mkdir") for place in PLACES] + [("deep", call) for call in CALLS]:
        write(path, kind, PLACES[place](CALLS[call](str(made))))
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        # Arrays of objects are refused before what they contain is read.
        assert caught.value.code == "weights.runs_code" or (place, caught.value.code) == ("array", "weights.broken")
        assert os.listdir(tmp_path) == ["weights.pth"]
    # Without the guard, the last one is run.
    pickle.loads(path.read_bytes()) if kind.startswith("pickle") else torch.load(path, weights_only=False)
    assert made.exists()


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        # A state for an allowed function or class.
        (b"c_codecs\nencode\n}X\x08\x00\x00\x00__code__Nsb.", "state of a method_descriptor"),
        (b"cnumpy.core.multiarray\nscalar\n}X\x08\x00\x00\x00__code__Nsb.", "state of a function"),
        (b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsNsb.", "state of a type"),
        (b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "an array of 'O'"),
        (b"cnumpy\ndtype\nX\x03\x00\x00\x00i99\x85R.", "an array of 'i99'"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85Nt\x85R.", "_reconstruct"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "zip"),
        # More references and longer strings than fit into memory.
        (b"Nr\xff\xff\xff\x3f0\x8d\xff\xff\xff\xff\xff\xff\xff\x0f", ""),
        (b"X\xff\xff\xff\x7fabc", "truncated"),
        (b"\x96" + struct.pack("<Q", 2**36) + b"abc", "truncated"),
    ],
)
def test_handmade_pickles_are_refused(tmp_path, opcodes, reason) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x04" + opcodes)
    with raises("weights.broken", path, reason):
        read_checkpoint(path)


def test_the_stock_unpickler_allocates_what_a_file_claims() -> None:
    """The reason for `ArrayUnpickler`."""
    array = pickle.loads(b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x10\x85\x85R.")
    assert array.nbytes == 8 * 2**28


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        (torch.ones(2, dtype=torch.complex64), "weights.not_plain"),
        (torch.ones(2, dtype=torch.int8), "weights.not_plain"),
        (torch.ones(2).to(torch.float8_e4m3fn), "weights.not_plain"),
        (torch.ones(2, 2).to_sparse(), "weights.not_plain"),
        (torch.ones(2, 2).to_sparse_csr(), "weights.not_plain"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "weights.not_plain"),
        (torch.ones(2, device="meta"), "weights.not_plain"),
        (torch.ones(1).expand(10**6, 10**6, 10**6), "weights.not_plain"),
        (torch.tensor([1.0, float("nan")]), "weights.not_finite"),
        (torch.tensor([1.0, -float("inf")], dtype=torch.float16), "weights.not_finite"),
        (torch.tensor([1e300], dtype=torch.float64), "weights.not_finite"),
    ],
)
def test_tensors_that_are_not_weights_are_refused(tmp_path, tensor, code) -> None:
    with raises(code, "stem.conv1.weight"):
        read(write(tmp_path / "weights.pth", "zip", {"model": {"stem.conv1.weight": tensor}}))


def test_contents_that_are_not_a_state_dict_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    assert read(write(path, "zip", {"model": WEIGHTS, "endless": endless, "deep": deep})).keys() == WEIGHTS.keys()
    with raises("weights.no_state_dict", MAX_TENSORS):
        read(write(path, "pickle2", {str(number): 1 for number in range(MAX_TENSORS + 1)}))
    for content in (None, 5, "x", endless, {"model": None}, {"model_state": 3}, {1: torch.ones(1)}, {"epoch": 3}):
        for kind in ("zip", "pickle2"):
            with raises("weights.no_state_dict", path):
                read(write(path, kind, content))


def test_pickles_that_weights_only_cannot_read_are_refused_with_torchs_reason(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path, pickle_protocol=4)
    with raises("weights.broken", "Unsupported operand 149"):
        read_checkpoint(path)


def test_archives_with_more_content_than_their_size_are_refused(tmp_path) -> None:
    path = write(tmp_path / "model_final.pth", "zip", {"weight": torch.zeros(1000, 1000)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 20_000
    assert torch.load(path, weights_only=True)["weight"].numel() == 10**6
    with raises("weights.broken", "an archive of torch.save"):
        read(path)
    assert not is_whole(path)
    # Several entries for the same bytes.
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.filelist.extend([max(archive.filelist, key=lambda member: member.file_size)] * 9)
        archive.NameToInfo.clear()
    with raises("weights.broken", "an archive of torch.save"):
        read(path)
    assert not is_whole(path)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}}, 16),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}}, 16),
        ({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}, 16),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 1000),
        ({"w": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}}, 16),
        ({"__metadata__": {"assumptions": "{"}}, 0),
        ({"__metadata__": {"assumptions": "[" * 100_000}}, 0),
        ({"__metadata__": {"assumptions": {}}}, 0),
    ],
)
def test_wrong_safetensors_headers_are_refused(tmp_path, header, size) -> None:
    path = tmp_path / "weights.safetensors"
    text = json.dumps(header).encode()
    for length in (len(text), 2**63, 2**40, 10**8, len(text) + 1, 1, 0):
        path.write_bytes(struct.pack("<Q", length) + text + b"\1" * size)
        with pytest.raises(UserError):
            read(path)


@pytest.mark.parametrize("create", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda path: None])
def test_paths_that_are_not_files_are_refused(tmp_path, create) -> None:
    path = tmp_path / "weights.pth"
    create(path)
    with raises("weights.not_found", path):
        read_checkpoint(path)


def test_devices_and_sparse_files_are_refused_quickly(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    for start in (b"PK\x03\x04", b"\x80\x02", b"", struct.pack("<Q", 2**33) + b"{"):
        path.write_bytes(start)
        os.truncate(path, 2**40)
        with pytest.raises(UserError):
            read_checkpoint(path)
    with raises("weights.not_found", "/dev/zero"):
        read_checkpoint("/dev/zero")


@pytest.mark.parametrize("name", ["../mine.zip", "/etc/passwd", "..", "", "a/b.pth", "x" * 300])
def test_last_checkpoint_cannot_name_a_file_outside_the_run(tmp_path, name) -> None:
    """A broken checkpoint is renamed, but never a file outside the run's folder."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "mine.zip").write_text("mine")
    (run / "last_checkpoint").write_text(name)
    with pytest.raises(UserError):
        newest_checkpoint(run)
    assert (tmp_path / "mine.zip").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "is_right"),
    [
        ("model-{:.8}.pth", b"weights", True),
        ("model-{:.8}.pth", b"others", False),
        ("{}", b"weights", True),
        ("{}", b"others", False),
        ("model-20240101.pth", b"others", True),
        ("model_final_f10217.pkl", b"others", True),
    ],
)
def test_a_download_must_have_the_sha256_in_its_name(tmp_path, name, content, is_right) -> None:
    """torch.hub's rule, and the hub's for the targets of the links in its cache; a date is not a digest."""
    path = tmp_path / name.format(hashlib.sha256(b"weights").hexdigest())
    path.write_bytes(content)
    (tmp_path / "link.pth").symlink_to(path)
    for file in (path, tmp_path / "link.pth"):
        if is_right:
            check_download(file)
        else:
            with raises("weights.wrong_sha256", path.name):
                check_download(file)
