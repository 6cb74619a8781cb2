"""Reading weights files without running anything that they hold."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
# What torch.save wrote before it wrote zip files: a pickle of this number comes first.
TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A `.pth`, `.pkl` or `.safetensors` file, told apart by content, as detectron2's checkpointer wants it.

    Returns:
        `model`, a state dict, and whatever lies beside it: `layout`, `matching_heuristics`, a run's `optimizer`, ...

    Raises:
        UserError: the file is broken, is something else, or would need to run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if start.startswith((ZIP, TORCH_MAGIC)):
        content = _read_torch(path)
    elif start.startswith(PICKLE):
        content = _read_pickle(path)
    elif start[8:9] == b"{":
        content = _read_safetensors(path)
    else:
        raise UserError(f"{path} is {_what_else(start)}; get the file again, or name another")
    return _state_dict_first(content, path)


def _what_else(start: bytes) -> str:
    if not start:
        return "empty"
    if start.lstrip()[:1] == b"<":
        return "a web page (such as a server's error page), not weights"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights that it points at"
    return "no weights file (.pth, .safetensors, or detectron2's .pkl)"


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unpicklable(path, error) from error
    # Torch raises whatever its reader meets: RuntimeError, EOFError, KeyError, ...
    except Exception as error:
        raise _broken(path, error) from error


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise _unpicklable(path, error) from error
    # So does pickle, of a broken file.
    except Exception as error:
        raise _broken(path, error) from error
    if not isinstance(content, dict) or ("model" in content and "__author__" in content):
        return content
    # Caffe2's, which detectron2 renames: a detector's weights are in `blobs`, a classifier's are not.
    weights = {key: value for key, value in content.get("blobs", content).items() if not str(key).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = {"model": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
    if "layout" in metadata:
        # As in the .pth files of this project: a trunk's names have no prefix.
        content |= {"layout": json.loads(metadata["layout"]), "matching_heuristics": True}
    return content


def _state_dict_first(content: Any, path: Path) -> dict[str, Any]:
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
    for key, value in state_dict.items():
        if not isinstance(value, Tensor) and not (isinstance(value, np.ndarray) and value.dtype != object):
            raise UserError(f"{path}: {key} is a {type(value).__name__}, not a tensor; save a state_dict() alone")
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r} is no name of a layer; save a state_dict() alone")
    tensors = {key: torch.as_tensor(value) for key, value in state_dict.items()}
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return {**content, "model": tensors}


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode(encoding)


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and plain containers: what detectron2's `.pkl` files hold."""

    ADMITTED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _unpicklable(path: Path, error: pickle.UnpicklingError) -> UserError:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return _broken(path, error)
    return UserError(
        f"{path} holds Python objects ({found[1]}) that could run any code, and was not read; if you trust its "
        "origin, load it with torch.load(..., weights_only=False) yourself and save its state dict alone"
    )


def _broken(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:150]
    return UserError(f"{path} is truncated, broken or no weights file ({reason}); get the file again")
