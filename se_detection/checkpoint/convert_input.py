"""Converts the weights that a user names: a file, or a timm model (`timm://NAME`)."""

import re
from pathlib import Path

from ..errors import UserError
from ..files import file_digest
from .converted import Converted
from .read_weights import read_checkpoint
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
        name: the path or URL of a `.pth` or `.safetensors` file, or a timm model with or without `timm://`.
        source: as in :func:`convert_state_dict`; required for a file, implied for a timm model.
        architecture: timm's name of the network in a file; required if neither the tensors nor the file's name show it.
        depth: as in :func:`convert_state_dict`.
        ema: take the moving average of the weights from a file that has both.

    Raises:
        UserError: there is no such file or model, or it can't be read or converted.
    """
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
        converted = Converted.from_state_dict(
            read_checkpoint(path, ema=ema)["model"],
            source,
            depth=depth,
            architecture=architecture,
            sha256=file_digest(path),
        )
        fitting = timm_name(converted.assumptions)
        if architecture not in ("", fitting):
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
