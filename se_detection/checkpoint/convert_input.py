"""Converts the weights that a user names: a file, a timm model (`timm://NAME`), or a released file by its name."""

import re
from pathlib import Path

from ..errors import UserError
from ..files import file_digest
from .converted import Converted
from .read_weights import read_checkpoint
from .released_weights import fetch_released, find_released, has_stride_in_1x1
from .timm_handler import PREFIX, fetch
from .verify import timm_name
from .weights_file import find_weights

# timm's networks with the same tensors as another; their strides are anti-aliased.
LOOK_ALIKES = {"resnet18": ("resnetblur18",), "resnet50": ("resnetaa50", "resnetblur50")}


def convert_input(
    name: str, source: str | None = None, *, architecture: str = "", depth: int | None = None, ema: bool = False
) -> Converted:
    """Converts a weights file, or the weights of a timm model, which timm downloads.

    Args:
        name: the path or URL of a `.pth` or `.safetensors` file; a timm model with or without `timm://`; or
            `mmpretrain://NAME` or `pytorchcv://NAME`.
        source: as in :func:`convert_state_dict`; required for a file, except one that mmpretrain or pytorchcv released.
        architecture: timm's or pytorchcv's name of the network in a file; required if neither the tensors nor the
            file's name show it.
        depth: as in :func:`convert_state_dict`.
        ema: take the moving average of the weights from a file that has both.

    Raises:
        UserError: there is no such file or model, or it can't be read or converted.
    """
    if find_released(name) and ("://" in name or (source is None and Path(name).is_file())):
        if ema:
            raise UserError("weights.no_ema", f"{name}: --ema is for a checkpoint of a training; omit it")
        return fetch_released(name, depth=depth)
    path = find_weights(name) if "://" in name and not name.startswith(PREFIX) else Path(name)
    if path.is_file():
        if source is None:
            raise UserError("weights.no_source", f"source: give the project that {path} comes from")
        for given in (architecture, path.name):
            if re.search(r"res(net|next)(aa|blur)", given):
                raise UserError(
                    "weights.unsupported_network", f"{given}: its strides are anti-aliased; use other weights"
                )
        architecture = architecture.split(".")[0]
        is_pytorchcv = source == "pytorchcv"
        converted = Converted.from_state_dict(
            read_checkpoint(path, ema=ema)["model"],
            source,
            depth=depth,
            architecture=architecture,
            sha256=file_digest(path),
            stride_in_1x1=is_pytorchcv and has_stride_in_1x1(architecture or path.name),
        )
        fitting = timm_name(converted.assumptions)
        if is_pytorchcv:
            _check_stride_is_named(path, fitting, architecture)
        elif architecture not in ("", fitting):
            raise UserError(
                "weights.other_network", f"--architecture {architecture}: {path} has the tensors of {fitting}; use that"
            )
        is_named = architecture or re.search(rf"(?<![a-z]){fitting}(?![a-z\d])", path.name)
        if source == "timm" and fitting in LOOK_ALIKES and not is_named:
            raise UserError(
                "weights.no_architecture",
                f"{path} has the tensors of {fitting}, which are also those of {' and '.join(LOOK_ALIKES[fitting])}, "
                f"other networks; if it is {fitting}, add --architecture {fitting}",
            )
        return converted
    model = name.removeprefix(PREFIX)
    if "/" in model or re.search(r"\.(pth|pt|pkl|safetensors)$", model):
        raise UserError("weights.not_found", f"{path}: there is no such file in {path.absolute().parent}; give another")
    if ema:
        raise UserError("weights.no_ema", f"{name}: --ema is for a file; timm has one set of weights of this name")
    return fetch(model, depth=depth)


def _check_stride_is_named(path: Path, fitting: str, architecture: str) -> None:
    """pytorchcv's `resnet50` and `resnet50b` have the same tensors, and their strides in other convolutions."""
    if re.match(rf"{fitting}b?(?![a-z\d])", architecture or path.name):
        return
    both = " or ".join((fitting, f"{fitting}b")) if re.fullmatch(r"(se)?resnet(50|101|152)", fitting) else fitting
    if architecture:
        raise UserError(
            "weights.other_network", f"--architecture {architecture}: {path} has the tensors of {both}; use that"
        )
    if both != fitting:
        raise UserError(
            "weights.no_architecture",
            f"{path} has the tensors of {both}, which have their strides in other layers; add --architecture with one",
        )
