"""Reads weights files without running code in them; checks the sizes that they claim, and the SHA-256 of downloads."""

import hashlib
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError
from ..files import parse_json
from .arrays import ArrayUnpickler, PickledArray

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
# torch.save's old format, from before its zip files, starts with a pickle of this number.
TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# ResNet-152 with FPN has 1,000. detectron2 compares each name in the file with each of the model's.
MAX_TENSORS = 10_000
# torch.hub's file names end with the first digits of their SHA-256; unlike a date, they have letters. In Hugging Face's
# cache, the whole digest is the name.
SHA256_IN_NAME = re.compile(r"(?:.*-)?([0-9a-f]{64}|(?<=-)(?=\d*[a-f])[0-9a-f]{8,63})(?:\.\w+)?")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a `.pth`, `.pkl` or `.safetensors` file, recognized by its content, for detectron2's checkpointer.

    Returns:
        `model`, a state dict, and the file's other entries, such as `assumptions` or a run's `optimizer`.

    Raises:
        UserError: the file is broken, is not a weights file, or holds code, or values that are not finite.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a folder, a pipe or a device; name a weights file")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if start.startswith((ZIP, TORCH_MAGIC)):
        read = _read_torch
    elif start.startswith(PICKLE):
        read = _read_pickle
    elif start[8:9] == b"{":
        read = _read_safetensors
    else:
        raise UserError(f"{path} is {_wrong_content(start)}; get the file again, or name another")
    try:
        return _checked_checkpoint(read(path), path, status.st_size)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise _unpicklable(path, error) from error
    # On a broken file, the readers raise errors of many classes: RuntimeError, EOFError, KeyError, MemoryError, ...
    except Exception as error:
        raise _broken(path, error) from error


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Checks that a `.pth` file is not compressed and lists no more bytes than it has, as torch.save writes it.

    Args:
        size: of the file, in bytes.

    Raises:
        zipfile.BadZipFile: it is compressed, or lists more bytes than it has.
    """
    members = archive.infolist()
    if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
        raise zipfile.BadZipFile("an archive of torch.save is not compressed, and holds no more than its size")


def check_download(path: Path) -> None:
    """Compares a file with the SHA-256 in its name, if there is one; follows links.

    Raises:
        UserError: the file has another SHA-256.
    """
    file = path.resolve()
    expected = SHA256_IN_NAME.fullmatch(file.name)
    if expected is None:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(expected[1]):
        raise UserError(
            f"{file}: its SHA-256 is {digest}, but its name says {expected[1]}; remove it to download it again, or if "
            "the name does not contain a SHA-256, download the file yourself and give its path"
        )


def _wrong_content(start: bytes) -> str:
    if not start:
        return "empty"
    if start.lstrip()[:1] == b"<":
        return "a web page (such as a server's error page), not weights"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights that it points to"
    return "not a weights file (.pth, .safetensors, or detectron2's .pkl)"


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        content = ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(content, dict) or ("model" in content and "__author__" in content):
        return content
    # Caffe2's format, which detectron2 renames: only a detector's weights are in `blobs`.
    weights = {key: value for key, value in content.get("blobs", content).items() if not str(key).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        metadata = file.metadata() or {}
    if "assumptions" in metadata:
        # As in this project's .pth files: the names of a backbone have no prefix.
        content |= {"assumptions": parse_json(metadata["assumptions"].encode()), "matching_heuristics": True}
    return content


def _checked_checkpoint(content: Any, path: Path, size: int) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a state dict; save only the model's state_dict()"
        )
    if "model_state" in content:
        content = {"model": content["model_state"], "matching_heuristics": True}
    elif "model" not in content:
        content = {"model": content.get("state_dict", content)}
    state_dict = content["model"]
    if not isinstance(state_dict, dict):
        raise UserError(f"{path}: model is a {type(state_dict).__name__}, not a state dict; save only a state_dict()")
    if len(state_dict) > MAX_TENSORS:
        raise UserError(f"{path} has {len(state_dict)} tensors; no detector has more than {MAX_TENSORS}")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor | PickledArray):
            raise UserError(f"{path}: {key} is a {type(value).__name__}, not a tensor; save only a state_dict()")
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r} is not a layer name; save only a state_dict()")
    tensors = {key: value if isinstance(value, Tensor) else value.tensor() for key, value in state_dict.items()}
    for tensor in _tensors([value for value in content.values() if value is not state_dict]):
        _check_tensor(path, "a tensor", tensor, size)
    for key, tensor in tensors.items():
        _check_tensor(path, key, tensor, size)
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UserError(f"{path}: {key} has values that are not finite; use an earlier checkpoint")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {**content, "model": tensors}


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested containers; these may be very deep, or contain themselves."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _check_tensor(path: Path, name: str, tensor: Tensor, size: int) -> None:
    """Raises unless a tensor holds plain numbers and is not larger than the file."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    # torch would silently convert 8-bit and complex tensors.
    if not dense or tensor.is_quantized or tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize < 2):
        raise UserError(f"{path}: {name} is a {tensor.dtype} tensor of layout {tensor.layout}; save plain weights")
    # An expanded tensor may have any size.
    if tensor.numel() * tensor.itemsize > size:
        raise UserError(f"{path}: {name} has shape {tuple(tensor.shape)}, and the file is too small for it")


def _unpicklable(path: Path, error: pickle.UnpicklingError) -> UserError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return _broken(path, error)
    return UserError(
        f"{path} holds Python objects ({found[1]}) that could run any code, and was not read; if you trust its "
        "origin, load it with torch.load(..., weights_only=False) yourself and save only its state dict"
    )


def _broken(path: Path, error: Exception) -> UserError:
    # torch's message also advises loading the file without weights_only, which is not safe.
    said = str(error).rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation of torch.load")[0]
    reason = (" ".join(said.split()) or type(error).__name__)[:150]
    return UserError(f"{path} is truncated, broken or not a weights file ({reason}); get the file again")
