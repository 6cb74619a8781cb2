"""Downloads, converts and caches timm's weights by name, as in `MODEL.WEIGHTS: timm://NAME`."""

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

from ..errors import UserError
from .converted import Converted
from .read_weights import check_download

PREFIX = "timm://"
NAMES = (
    r"(se)?(resnet(18|34|50|101|152)|resnext(50|101)_\d+x\d+d)|wide_resnet(50|101)_2"
    r"|legacy_(seresnet(50|101|152)|seresnext(50|101)_32x4d|senet154)"
)
ANTI_ALIASED = r"res(net|next)(aa|blur)"
UNSUPPORTED_NAMES = (
    (r"legacy_seresnet(18|34)", "it has a ReLU before each SE block, unlike the paper's"),
    (rf"\w*{ANTI_ALIASED}\w*", "its strides are anti-aliased"),
    (r"(se)?res(net|next)\d+[cst](_.*)?", "it has a deep stem"),
    (r"(se)?res(net|next)\d+d(_.*)?", "it has a deep stem and average-pooled shortcuts (ResNet-D)"),
    (r"\w*res(net|next)rs\w*", "it has a deep stem and average-pooled shortcuts (ResNet-RS)"),
    (r"(legacy_)?(se)?res(net|next)\d+(_\d+x\d+d)?", "this depth is not supported"),
)


def source_of(name: str) -> str:
    """The `source` of a timm model for :func:`convert_state_dict`.

    Args:
        name: with or without tag, without `timm://`.

    Raises:
        UserError: this is not a timm name, or the model has other layers than this project's backbones.
    """
    model = name.split(".")[0]
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{PREFIX}{name}: this is not the name of a timm model")
    if not re.fullmatch(NAMES, model):
        reason = next(
            (reason for pattern, reason in UNSUPPORTED_NAMES if re.fullmatch(pattern, model)), "its layers differ"
        )
        raise UserError(
            f"{PREFIX}{name}: {reason}; supported are timm's resnet*, resnext*, seresnet*, seresnext* and legacy_se* "
            "without such changes"
        )
    return "timm-legacy" if model.startswith("legacy_") else "timm"


def refuse_look_alike(file_name: str) -> None:
    """Raises a :class:`UserError` for a timm file whose network is not a plain ResNet, although its tensors fit one."""
    if re.search(ANTI_ALIASED, file_name):
        raise UserError(f"{file_name}: its strides are anti-aliased, which is not supported")


def fetch(name: str, *, depth: int | None = None) -> Converted:
    """Downloads weights by timm and converts them, with the mean and std from timm's metadata.

    Args:
        depth: as in :func:`convert_state_dict`.

    Raises:
        UserError: timm is missing or can't download these weights, or they can't be converted.
    """
    source = source_of(name)
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(f"{PREFIX}{name} needs the package timm: pip install timm") from error
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of any class: the hub client's errors change with its version
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{PREFIX}{name}: timm could not download these weights ({reason}); if this machine has no network, run "
            f"se-det convert {name} --output FILE.pth on one that has, and set MODEL.WEIGHTS to FILE.pth"
        ) from error
    _check_fetched(model.pretrained_cfg.get("hf_hub_id"))
    state_dict = model.state_dict()
    digest = sha256()
    for key, tensor in state_dict.items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    return Converted.from_state_dict(
        state_dict,
        source,
        depth=depth,
        sha256=digest.hexdigest(),
        pixel_mean=tuple(255 * value for value in model.pretrained_cfg["mean"]),
        pixel_std=tuple(255 * value for value in model.pretrained_cfg["std"]),
    )


def _check_fetched(repository: str | None) -> None:
    """Compares the file in Hugging Face's cache with the SHA-256 that the hub gave for it."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, name) if repository else None
        if isinstance(cached, str):
            check_download(Path(cached))


class TimmHandler(PathHandler):
    """Resolves `timm://NAME` to a local, converted file."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path.removeprefix(PREFIX)
        source_of(name)
        cached = Path(get_cache_dir(), "se_detection", f"{name}.pth")
        if force or not cached.exists():
            weights = fetch(name)
            cached.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when complete, so that no other process or run reads a partial file.
            part = cached.with_name(f"{name}.{os.getpid()}.part.pth")
            weights.save(part)
            part.replace(cached)
        return str(cached)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)


def register_timm_handler() -> None:
    """Registers `timm://` with detectron2's path manager; may be called again."""
    PathManager.register_handler(TimmHandler(), allow_override=True)
