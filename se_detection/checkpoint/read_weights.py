"""Reads weights files without running code in them; checks the sizes that they claim."""

import logging
import pickle
import re
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UserError
from ..files import parse_json
from .arrays import ArrayUnpickler, PickledArray

logger = logging.getLogger(__name__)

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
# torch.save's old format, from before its zip files, starts with a pickle of this number.
TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# ResNet-152 with FPN has 1,000. detectron2 compares each name in the file with each of the model's.
MAX_TENSORS = 10_000
# torch would silently convert 8-bit, complex and quantized tensors.
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
# The entry of a training checkpoint with the weights: pycls', detectron2's and torchvision's, timm's and Lightning's,
# and that of PyTorch's tutorials.
ENTRIES = ("model_state", "model", "state_dict", "model_state_dict")
# The entry with a moving average of the weights (timm's state_dict_ema, torchvision's model_ema), or its part of a
# LightningModule.
EMA = re.compile(r"(?:^|_)(?:ema|swa|averaged?)(?:_|$)")
# What a wrapper (DDP, torch.compile, a LightningModule) puts before all names of a ResNet or of a detector.
WRAPPER = re.compile(
    r"(?!backbone\.(?:bottom_up|stem)\.)"
    r"(?:.+?\.(?=(?:backbone\.bottom_up|(?:backbone\.)?stem\.conv1|layer1\.0\.conv1)\.)|(?:(?:module|_orig_mod)\.)+)"
)


def read_checkpoint(path: str | Path, *, ema: bool = False) -> dict[str, Any]:
    """Reads a `.pth`, `.pkl` or `.safetensors` file, recognized by its content, for detectron2's checkpointer.

    Weights in an entry of another name, or with one prefix before all names, are found, and the log says so. It also
    says which weights were taken from a file with a moving average.

    Args:
        ema: take the moving average of the weights.

    Returns:
        `model`, a state dict, and the file's other entries, such as `assumptions` or a run's `optimizer`.

    Raises:
        UserError: the file is broken, is not a weights file, or holds code, or values that are not finite; or it has
            no moving average, with `ema`.
    """
    path = Path(path)
    # Reading a pipe would block, and reading a device would not end.
    if not path.is_file():
        raise UserError("weights.not_found", f"{path} is not a file; use the path of a weights file")
    with path.open("rb") as file:
        start = file.read(64)
    # First, because the length of its header, in the 8 bytes before it, may look like any other mark.
    if start[8:9] == b"{":
        read = _read_safetensors
    elif start.startswith((ZIP, TORCH_MAGIC)):
        read = _read_torch
    elif start.startswith(PICKLE):
        read = _read_pickle
    else:
        raise UserError("weights.not_weights", f"{path} is {_wrong_content(start)}; get the file again, or use another")
    try:
        return _checked_checkpoint(read(path), path, ema)
    except UserError:
        raise
    # On a broken file, the readers raise errors of many classes: RuntimeError, EOFError, KeyError, MemoryError, ...
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise UserError(
                "weights.runs_code",
                f"{path} holds Python objects ({found[1]}) that could run any code, and was not read; if you trust its "
                "origin, load it with torch.load(..., weights_only=False) yourself and save only its state dict",
            ) from error
        # torch's message also advises loading the file without weights_only, which is not safe.
        said = str(error).rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation")[0]
        reason = " ".join(said.split())[:150] or type(error).__name__
        raise UserError(
            "weights.broken", f"{path} is truncated, broken or not a weights file ({reason}); get the file again"
        ) from error


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Raises BadZipFile if a `.pth` file is compressed or lists more bytes than its `size`; torch.save does neither."""
    members = archive.infolist()
    if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
        raise zipfile.BadZipFile("an archive of torch.save is not compressed, and holds no more than its size")


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
    # timm's and torchvision's training scripts save their arguments too; a Namespace only holds values.
    with torch.serialization.safe_globals([Namespace]):
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


def _checked_checkpoint(content: Any, path: Path, ema: bool) -> dict[str, Any]:
    found, entry = content, None
    if isinstance(content, dict):
        entry = _entry(content)
        found = _choose(content, entry, path, ema)
    if not isinstance(found, dict) or len(found) > MAX_TENSORS:
        what = f"more than {MAX_TENSORS} entries" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise UserError("weights.no_state_dict", f"{path} holds {what}, not a state dict; save only a state_dict()")
    tensors = {}
    for key, value in found.items():
        tensor = torch.from_numpy(value.values) if isinstance(value, PickledArray) else value
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            what = f"{path}: {key!r} is a {type(value).__name__}, not a tensor with a name"
            raise UserError("weights.no_state_dict", f"{what}; save only a state_dict()")
        is_dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
        # An expanded tensor may have any size.
        if not is_dense or tensor.dtype not in NUMBERS or tensor.nbytes > path.stat().st_size:
            what = f"{path}: {key} is a {tensor.dtype} tensor of shape {tuple(tensor.shape)} and layout {tensor.layout}"
            raise UserError("weights.not_plain", f"{what}, not plain numbers in the file; save it as such")
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UserError("weights.not_finite", f"{path}: {key} has values that are not finite; use another file")
        tensors[key] = tensor
    unwrapped, prefix = _unwrapped(tensors)
    if entry not in (None, *ENTRIES):
        logger.warning(f"{path}: took the weights in its entry {entry}")
    if prefix:
        logger.warning(f"{path}: took the weights without the prefix {prefix!r} of all their names")
    if entry == "model":
        return {**content, "model": unwrapped}
    return {"model": unwrapped, **({"matching_heuristics": True} if entry == "model_state" else {})}


def _choose(content: dict[Any, Any], entry: str | None, path: Path, ema: bool) -> Any:
    """The weights, or with `ema` their moving average, in whichever of the ways of :data:`EMA`."""
    found = _inner(content if entry is None else content[entry])
    # Lightning's WeightAveraging and mmengine's EMAHook save the average as the model, and the weights separately.
    meta = content.get("meta")
    swapped = "ema_state_dict" if isinstance(meta, dict) and "mmengine_version" in meta else "current_model_state"
    if swapped in content and entry == "state_dict":
        logger.warning(f"{path}: took {entry}, the moving average of the weights; {swapped} has them without averaging")
        return found
    averages = {name: _inner(value) for name, value in content.items() if isinstance(name, str) and EMA.search(name)}
    averages = {name: value for name, value in averages.items() if _is_state_dict(value)}
    if isinstance(found, dict):
        parts = {str(key).split(".")[0] for key in found if "." in str(key)}
        for part in sorted(filter(EMA.search, parts))[:1]:
            averages[part] = {key: value for key, value in found.items() if str(key).startswith(f"{part}.")}
            found = {key: value for key, value in found.items() if key not in averages[part]}
    if ema and not averages:
        raise UserError("weights.no_ema", f"{path} has no moving average of the weights; omit --ema")
    if not averages:
        return found
    name = next(iter(averages))
    if ema or not _is_state_dict(found):
        logger.warning(f"{path}: took {name}, the moving average of the weights")
        return averages[name]
    logger.warning(f"{path}: took the weights; se-det convert --ema takes their moving average, {name}")
    return found


def _entry(content: dict[Any, Any]) -> str | None:
    """The entry of a checkpoint with its weights: one with a usual name, or the only one with a state dict."""
    if usual := [name for name in ENTRIES if name in content]:
        return usual[0]
    entries = [name for name, value in content.items() if isinstance(name, str) and _is_state_dict(_inner(value))]
    entries = [name for name in entries if not EMA.search(name)]
    return entries[0] if len(entries) == 1 else None


def _inner(value: Any) -> Any:
    """The state dict in an entry, which may have it in an entry of its own."""
    entries = [value[name] for name in (*ENTRIES, "module") if name in value] if isinstance(value, dict) else []
    return entries[0] if entries and isinstance(entries[0], dict) else value


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(next(iter(value.values()), None), Tensor | PickledArray)


def _unwrapped(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without the prefix of wrappers, and the prefix."""
    removed = ""
    for _ in range(3):  # a wrapper in a wrapper
        prefix = next((match[0] for match in map(WRAPPER.match, tensors) if match), "")
        # An averaged model (torch.optim.swa_utils) counts its updates in a scalar of its own.
        named = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix) or tensor.dim()}
        if not prefix or not all(key.startswith(prefix) for key in named):
            break
        tensors = {key.removeprefix(prefix): tensor for key, tensor in named.items()}
        removed += prefix
    return tensors, removed
