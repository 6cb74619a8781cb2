"""`MODEL.WEIGHTS: timm://NAME`: weights that timm fetches, converted and cached."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

from ..errors import UserError
from .convert import convert_state_dict

PREFIX = "timm://"


class TimmHandler(PathHandler):
    """Gives detectron2 a local file for timm's `resnet*`, `seresnet*` and `legacy_seresnet*`."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path.removeprefix(PREFIX)
        if not re.fullmatch(r"(legacy_|)(se|)resnet\d+(\.\w+)?", name):
            raise UserError(
                f"{path}: only timm's resnet*, seresnet* and legacy_seresnet* have the layers of these trunks"
            )
        cached = Path(get_cache_dir(), "se_detection", f"{name}.pth")
        if not cached.exists():
            source = "timm-legacy" if name.startswith("legacy_") else "timm"
            weights = convert_state_dict(_fetch(name), source)
            cached.parent.mkdir(parents=True, exist_ok=True)
            # Renamed when whole: another process, or the next run, never sees a part of it.
            part = cached.with_suffix(f".{os.getpid()}.part")
            torch.save({"model": weights, "matching_heuristics": True, "__author__": f"timm {name}"}, part)
            part.rename(cached)
        return str(cached)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering=buffering)


def _fetch(name: str) -> dict[str, torch.Tensor]:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(f"{PREFIX}{name} needs the package timm: pip install timm") from error
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # whatever the hub's client raises: its classes change with its version
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{PREFIX}{name}: timm could not fetch these weights ({reason})") from error


def register_timm_handler() -> None:
    """Makes detectron2's path manager understand `timm://`; harmless if it does already."""
    PathManager.register_handler(TimmHandler(), allow_override=True)
