"""Hostile and broken weights files end with a one-line error or are read; their code is never run."""

import hashlib
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from se_detection import UserError
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.converted import Converted
from se_detection.checkpoint.read_weights import MAX_TENSORS, check_download, read_checkpoint
from se_detection.checkpoint.timm_handler import fetch, source_of
from se_detection.runs.checkpoints import is_whole, newest_checkpoint

from ..fuzzing import Tally, examples

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
        arrays = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in content.items()}
        path.write_bytes(pickle.dumps(arrays, int(kind[-1])))
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


@pytest.fixture
def tally() -> Iterator[Tally]:
    counted = Tally("weights files")
    yield counted
    print(f"\n{counted}")
    assert counted.counts["refused"]
    assert counted.counts["read"]


PIECES = [
    *(
        b"",
        b"\0",
        b".",
        b"cos\nsystem\n",
        b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R",
        b"\x80\x04\x95\xff",
        b"(",
        b"}",
        b"]",
    ),
    *(
        b"\x8d" + b"\xff" * 7 + b"\x0f",
        b"r\xff\xff\xff\x3f",
        b"R",
        b"b",
        b"\x93",
        b"0",
        b"\x81",
        b"t",
        b"NNb",
        b"i",
        b"o",
    ),
    *(b"\xff" * 8, b"PK\x05\x06", b"PK\x01\x02", b"\x00\x00\x00\x00\x00\x00\x00\x80", b'"F64"', b'"F8_E4M3"', b'"I32"'),
    *(b"[999999999,999999999]", b"[-1]", b"-1", b"1e9", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 8),
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


def test_corrupted_files(tally, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    whole = {kind: write(path, kind, WEIGHTS).read_bytes() for kind in KINDS}

    @examples(400)
    @given(st.sampled_from(KINDS).flatmap(lambda kind: corrupted(whole[kind])))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        tally.refused(read, path)
        assert path.read_bytes() == data

    started = time.monotonic()
    check()
    assert time.monotonic() - started < 0.5 * sum(tally.counts.values())
    assert os.listdir(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle2", "pickle5"])
@pytest.mark.parametrize(
    "place",
    [
        lambda call: call,
        lambda call: {"model": WEIGHTS, "__author__": call},
        lambda call: {"model": WEIGHTS, "assumptions": {"depth": [call]}},
        lambda call: {"stem.conv1.weight": call},
        lambda call: {"state_dict": {}, "epoch": {1: {2: [3, (call,)]}}},
        lambda call: {"stem.conv1.weight": np.array([call], dtype=object)},
    ],
    ids=["all", "author", "assumptions", "tensor", "deep", "array"],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda made: CallOnLoad(os.mkdir, made),
        lambda made: CallOnLoad(os.system, f"mkdir {made}"),
        lambda made: CallOnLoad(eval, f"__import__('os').mkdir({made!r})"),
        lambda made: CallOnLoad(getattr, CallOnLoad(__import__, "os"), "mkdir"),
        lambda made: CallOnLoad(open, made, "w"),
        lambda made: CallOnLoad(np.save, made, 1),
    ],
    ids=["mkdir", "system", "eval", "getattr", "open", "numpy"],
)
def test_code_in_any_place_is_not_run(tmp_path, kind, place, call) -> None:
    made = tmp_path / "made"
    path = tmp_path / "weights.pth"
    content = place(call(str(made)))
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"could run any code, and was not read|not a weights file \(an array of"):
        read_checkpoint(path)
    with pytest.raises(UserError):
        convert_input(str(path), "timm")
    assert not made.exists()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        # A state for an allowed function.
        (b"c_codecs\nencode\n}X\x08\x00\x00\x00__code__Nsb.", "state of a function"),
        (b"ccollections\nOrderedDict\n}X\x05\x00\x00\x00itemsNsb.", "state of a type"),
        (b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "an array of 'O'"),
        (b"cnumpy\ndtype\nX\x03\x00\x00\x00i99\x85R.", "an array of 'i99'"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85Nt\x85R.", "_reconstruct"),
        (b"c__main__\nx\n.", "__main__.x"),
        (b"cnumpy\nsave\n.", "numpy.save"),
        (b"\x8c\x05numpy\x8c\x0fndarray.tobytes\x93.", "numpy.ndarray.tobytes"),
        # More references and longer strings than fit into memory.
        (b"Nr\xff\xff\xff\x3f0\x8d\xff\xff\xff\xff\xff\xff\xff\x0f", "MemoryError|truncated|cannot fit"),
        (b"X\xff\xff\xff\x7fabc", "truncated"),
        (b"\x96" + struct.pack("<Q", 2**36) + b"abc", "truncated"),
    ],
)
def test_handmade_pickles_are_refused(tmp_path, opcodes, reason) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x04" + opcodes)
    with pytest.raises(UserError, match=reason):
        read_checkpoint(path)


def test_the_stock_unpickler_allocates_what_a_file_claims() -> None:
    """The reason for `ArrayUnpickler`."""
    array = pickle.loads(b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x10\x85\x85R.")
    assert array.nbytes == 8 * 2**28


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn|not a weights file"),
        (torch.ones(2, 2).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(2, 2).to_sparse_csr(), "layout torch.sparse_csr"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
        (torch.ones(2, device="meta"), "plain weights"),
        (torch.tensor([1.0, float("nan")]), "values that are not finite"),
        (torch.tensor([1.0, -float("inf")], dtype=torch.float16), "values that are not finite"),
        (torch.tensor([1e300], dtype=torch.float64), "values that are not finite"),
        (torch.ones(1).expand(10**12), "the file is too small for it"),
        (torch.ones(1).expand(10**6, 10**6, 10**6), "the file is too small for it"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_tensors_that_are_not_weights_are_refused(tmp_path, kind, tensor, message) -> None:
    for content in ({"model": {"stem.conv1.weight": tensor}}, {"model": WEIGHTS, "optimizer": {"state": [(tensor,)]}}):
        path = write(tmp_path / "weights.pth", kind, content)
        if "finite" in message and "optimizer" in content:
            read(path)
            continue
        with pytest.raises(UserError, match=message):
            read(path)


def test_contents_that_are_not_a_state_dict_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    torch.save({"model": WEIGHTS, "endless": endless, "deep": deep}, path)
    assert read(path).keys() == WEIGHTS.keys()
    write(path, "pickle2", {f"stem.{number}": torch.ones(()) for number in range(MAX_TENSORS + 1)})
    with pytest.raises(UserError, match=f"{MAX_TENSORS + 1} tensors; no detector has more"):
        read(path)
    for content in (None, 5, "x", endless, {"model": None}, {"model_state": 3}, {1: torch.ones(1)}, {"blobs": 3}):
        for kind in ("zip", "pickle2"):
            write(path, kind, content) if kind == "zip" else path.write_bytes(pickle.dumps(content, 2))
            with pytest.raises(UserError):
                read(path)


def test_pickles_that_weights_only_cannot_read_are_refused_with_torchs_reason(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path, pickle_protocol=4)
    with pytest.raises(UserError, match=r"not a weights file \(Unsupported operand 149\)"):
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
    with pytest.raises(UserError, match=r"an archive of torch\.save is not compressed"):
        read(path)
    assert not is_whole(path)
    # Several entries for the same bytes.
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.filelist.extend([max(archive.filelist, key=lambda member: member.file_size)] * 9)
        archive.NameToInfo.clear()
    with pytest.raises(UserError, match="holds no more than its size"):
        read(path)
    assert not is_whole(path)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}}, 16),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}}, 16),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, 16),
        ({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}, 16),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, 1000),
        ({"w": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}}, 16),
        ({"w": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}}, 16),
        ({"__metadata__": {"assumptions": "{"}}, 0),
        ({"__metadata__": {"assumptions": "[" * 100_000}}, 0),
        ({"__metadata__": {"assumptions": {}}}, 0),
    ],
)
def test_wrong_safetensors_headers_are_refused(tmp_path, header, size) -> None:
    path = tmp_path / "weights.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" * size)
    with pytest.raises(UserError):
        read(path)
    for length in (2**63, 2**40, 10**8, len(text) + 1, 1, 0):
        path.write_bytes(struct.pack("<Q", length) + text + b"\1" * size)
        with pytest.raises(UserError):
            read(path)


@pytest.mark.parametrize("create", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda path: None])
def test_paths_that_are_not_files_are_refused(tmp_path, create) -> None:
    path = tmp_path / "weights.pth"
    create(path)
    with pytest.raises(UserError, match=r"a folder, a pipe or a device|Too many levels|No such file"):
        read_checkpoint(path)
    with pytest.raises(UserError):
        convert_input(str(path), "timm")


def test_devices_and_sparse_files_are_refused_quickly(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    for start in (b"PK\x03\x04", b"\x80\x02", b"", struct.pack("<Q", 2**33) + b"{"):
        path.write_bytes(start)
        os.truncate(path, 2**40)
        with pytest.raises(UserError):
            read_checkpoint(path)
    with pytest.raises(UserError, match="a device"):
        read_checkpoint("/dev/zero")


@pytest.mark.parametrize("name", ["../mine.zip", "/etc/passwd", "..", "", "a/b.pth", "x" * 300])
def test_last_checkpoint_cannot_name_a_file_outside_the_run(tmp_path, name) -> None:
    """A broken checkpoint is renamed, but never a file outside the run's folder."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "mine.zip").write_text("mine")
    (run / "last_checkpoint").write_text(name)
    with pytest.raises(UserError, match=r"which is not a file in its folder|but no checkpoint exists"):
        newest_checkpoint(run)
    assert (tmp_path / "mine.zip").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "refused"),
    [
        ("model-{}.pth", b"weights", False),
        ("model-{}.pth", b"others", True),
        ("model-20240101.pth", b"others", False),
        ("model_final_f10217.pkl", b"others", False),
    ],
)
def test_a_download_must_have_the_sha256_in_its_name(tmp_path, name, content, refused) -> None:
    """torch.hub's rule; a date is not a digest."""
    path = tmp_path / name.format(hashlib.sha256(b"weights").hexdigest()[:8])
    path.write_bytes(content)
    if refused:
        with pytest.raises(UserError, match=r"its SHA-256 is .* remove it to download it again"):
            check_download(path)
    else:
        check_download(path)


def test_files_in_the_hubs_cache_must_have_their_sha256(tmp_path, monkeypatch) -> None:
    """In Hugging Face's cache, a file is a link to a blob whose name is its SHA-256."""
    model = timm.create_model("resnet18")
    model.pretrained_cfg["hf_hub_id"] = "timm/resnet18.a1_in1k"
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    for folder in ("refs", "blobs", "snapshots/1234"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("1234")
    blob = repository / "blobs" / hashlib.sha256(b"weights").hexdigest()
    blob.write_bytes(b"weights")
    (repository / "snapshots" / "1234" / "model.safetensors").symlink_to(blob)
    fetch("resnet18.a1_in1k")
    blob.write_bytes(b"others")
    with pytest.raises(UserError, match=f"its name says {blob.name}"):
        fetch("resnet18.a1_in1k")


@pytest.mark.parametrize("name", ["resnet50./../../x", "resnet50.a/b", "resnet50\n", "resnet50. "])
def test_timm_names_cannot_be_paths(name) -> None:
    with pytest.raises(UserError, match="not the name of a timm model"):
        source_of(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.weight": torch.ones(64)}, "do not fit a ResNet|of another shape"),
        ({"conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)}, "int8, not floating point; quantized weights"),
        ({"layer1.0.conv1.weight": torch.ones(())}, "do not fit a ResNet"),
        ({"layer1.0.conv1.weight": torch.ones(0, 0, 0, 0)}, "do not fit a ResNet|another shape"),
        ({"layer1.0.conv1.extra": torch.ones(3)}, r"unexpected .*res2\.0\.conv1\.extra"),
        ({"layer1.0.se.fc1.weight": torch.ones(0, 64, 1, 1)}, "do not fit a ResNet"),
        ({"layer1.0.se.fc1.weight": torch.ones(4, 0, 1, 1)}, "another shape|do not fit a ResNet"),
        ({"bn1.weight": torch.ones(64), "stem.conv1.norm.weight": torch.ones(64)}, "under two names"),
        ({"layer1.0.downsample.0.weight": torch.ones(1), "layer1.0.shortcut.weight": torch.ones(1)}, "under two names"),
    ],
)
def test_layers_of_other_shapes_are_refused(change, message) -> None:
    weights = timm.create_model("resnet18").state_dict()
    with pytest.raises(UserError, match=message):
        Converted.from_state_dict(weights | change, "timm", sha256="")
