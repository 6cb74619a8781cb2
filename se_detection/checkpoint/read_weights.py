"""Reading weights files without running anything that they hold, and without taking their word for their size."""

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
# What torch.save wrote before it wrote zip files: a pickle of this number comes first.
TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# ResNet-152 under FPN has 1,000, and detectron2 compares each name with each of the model's.
MAX_TENSORS = 10_000


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A `.pth`, `.pkl` or `.safetensors` file, told apart by content, as detectron2's checkpointer wants it.

    Returns:
        `model`, a state dict, and whatever lies beside it: `assumptions`, `matching_heuristics`, a run's `optimizer`, ...

    Raises:
        UserError: the file is broken, is something else, would need to run code, or has weights that nothing can be
            computed with.
    """
    path = Path(path)
    try:
        size = path.stat()
        if not stat.S_ISREG(size.st_mode):
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
        raise UserError(f"{path} is {_what_else(start)}; get the file again, or name another")
    try:
        return _state_dict_first(read(path), path, size.st_size)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise _unpicklable(path, error) from error
    # The readers raise whatever they meet in a broken file: RuntimeError, EOFError, KeyError, MemoryError, ...
    except Exception as error:
        raise _broken(path, error) from error


def _what_else(start: bytes) -> str:
    if not start:
        return "empty"
    if start.lstrip()[:1] == b"<":
        return "a web page (such as a server's error page), not weights"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights that it points at"
    return "no weights file (.pth, .safetensors, or detectron2's .pkl)"


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Whether a `.pth` holds no more than its own size: torch.save compresses nothing.

    Args:
        size: of the file.

    Raises:
        zipfile.BadZipFile: it is compressed, or lists more than it holds.
    """
    members = archive.infolist()
    if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
        raise zipfile.BadZipFile("an archive of torch.save is not compressed, and holds no more than its size")


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
    # Caffe2's, which detectron2 renames: a detector's weights are in `blobs`, a classifier's are not.
    weights = {key: value for key, value in content.get("blobs", content).items() if not str(key).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
        metadata = file.metadata() or {}
    if "assumptions" in metadata:
        # As in the .pth files of this project: a backbone's names have no prefix.
        content |= {"assumptions": parse_json(metadata["assumptions"].encode()), "matching_heuristics": True}
    return content


def _state_dict_first(content: Any, path: Path, size: int) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a state dict; save the model's state_dict() alone"
        )
    if "model_state" in content:
        content = {"model": content["model_state"], "matching_heuristics": True}
    elif "model" not in content:
        content = {"model": content.get("state_dict", content)}
    state_dict = content["model"]
    if not isinstance(state_dict, dict):
        raise UserError(f"{path}: model is a {type(state_dict).__name__}, not a state dict; save a state_dict() alone")
    if len(state_dict) > MAX_TENSORS:
        raise UserError(f"{path} has {len(state_dict)} tensors; no detector has more than {MAX_TENSORS}")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor | PickledArray):
            raise UserError(f"{path}: {key} is a {type(value).__name__}, not a tensor; save a state_dict() alone")
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r} is no name of a layer; save a state_dict() alone")
    tensors = {key: value if isinstance(value, Tensor) else value.tensor() for key, value in state_dict.items()}
    for tensor in _tensors([value for value in content.values() if value is not state_dict]):
        _check_tensor(path, "a tensor", tensor, size)
    for key, tensor in tensors.items():
        _check_tensor(path, key, tensor, size)
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UserError(f"{path}: {key} has values that are not finite; take a checkpoint from before")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {**content, "model": tensors}


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in containers, which may be nested deeply, or in themselves."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _check_tensor(path: Path, name: str, tensor: Tensor, size: int) -> None:
    """Raises unless a tensor is one of plain numbers that the file can hold."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    # Those of 8 bits, and complex ones, are no weights; torch would make others of them without a word.
    if not dense or tensor.is_quantized or tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize < 2):
        raise UserError(f"{path}: {name} is a {tensor.dtype} tensor of layout {tensor.layout}; save plain weights")
    # One that repeats its values may be of any size.
    if tensor.numel() * tensor.itemsize > size:
        raise UserError(f"{path}: {name} has shape {tuple(tensor.shape)}, for which the file is too small")


def _unpicklable(path: Path, error: pickle.UnpicklingError) -> UserError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return _broken(path, error)
    return UserError(
        f"{path} holds Python objects ({found[1]}) that could run any code, and was not read; if you trust its "
        "origin, load it with torch.load(..., weights_only=False) yourself and save its state dict alone"
    )


def _broken(path: Path, error: Exception) -> UserError:
    # torch says so between advice to read the file without its safety, and where its documentation is.
    said = str(error).rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation of torch.load")[0]
    reason = (" ".join(said.split()) or type(error).__name__)[:150]
    return UserError(f"{path} is truncated, broken or no weights file ({reason}); get the file again")


# torch.hub's names end with the beginning of their SHA-256, which a date is not; Hugging Face's cache has whole ones.
PROMISED = re.compile(r"(?:.*-)?([0-9a-f]{64}|(?<=-)(?=\d*[a-f])[0-9a-f]{8,63})(?:\.\w+)?")


def check_download(path: Path) -> None:
    """Compares a file with the SHA-256 in its name, where it has one; links are followed.

    Raises:
        UserError: it is another file.
    """
    file = path.resolve()
    promised = PROMISED.fullmatch(file.name)
    if promised is None:
        return
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if not digest.startswith(promised[1]):
        raise UserError(
            f"{file}: its SHA-256 is {digest}, and its name says {promised[1]}; remove it, and it is downloaded again, "
            "or if the name means something else, download it yourself and give its path"
        )
