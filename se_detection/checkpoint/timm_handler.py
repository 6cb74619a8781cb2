"""Downloads, converts and caches timm's weights by name, as in `MODEL.WEIGHTS: timm://NAME`."""

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from iopath.common.file_io import PathHandler, get_cache_dir

from ..errors import UserError
from .converted import Converted
from .read_weights import check_download

PREFIX = "timm://"
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
    model = name.split(".")[0]
    if not re.fullmatch(r"[\w.-]+", name) or not re.fullmatch(NAMES, model):
        raise UserError(
            "weights.unsupported_network",
            f"{PREFIX}{name}: this is not a timm model with the layers of a plain ResNet or SE-ResNet; use a resnet*, "
            "resnext*, seresnet*, seresnext* or legacy_se* without deep stem, anti-aliasing or other changes, of depth "
            "18, 34, 50, 101 or 152 (legacy_seresnet18 and 34 have another SE block)",
        )
    return "timm-legacy" if model.startswith("legacy_") else "timm"


def fetch(name: str, *, depth: int | None = None) -> Converted:
    """Downloads weights by timm and converts them, with the mean and std from timm's metadata.

    Args:
        depth: as in :func:`convert_state_dict`.

    Raises:
        UserError: timm can't download these weights, or they can't be converted.
    """
    # Here, because importing them takes seconds.
    import timm
    from huggingface_hub import try_to_load_from_cache

    source = source_of(name)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of any class: the hub client's errors change with its version
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            "weights.no_download",
            f"{PREFIX}{name}: timm could not download these weights ({reason}); if this machine has no network, run "
            f"se-det convert {name} --output FILE.pth on one that has, and set MODEL.WEIGHTS to FILE.pth",
        ) from error
    # In Hugging Face's cache, the name of a file's target is the SHA-256 that the hub gave for it.
    if repository := model.pretrained_cfg.get("hf_hub_id"):
        for file in ("model.safetensors", "pytorch_model.bin"):
            if isinstance(cached := try_to_load_from_cache(repository, file), str):
                check_download(Path(cached))
    state_dict = model.state_dict()
    digest = sha256()
    for key, tensor in state_dict.items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    return Converted.from_state_dict(
        state_dict,
        source,
        depth=depth,
        architecture=name.split(".")[0],
        sha256=digest.hexdigest(),
        pixel_mean=tuple(255 * value for value in model.pretrained_cfg["mean"]),
        pixel_std=tuple(255 * value for value in model.pretrained_cfg["std"]),
    )


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
