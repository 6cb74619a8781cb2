"""Converts the weights that a user names: a file, or a timm model (`timm://NAME`)."""

import re
from pathlib import Path

from ..errors import UserError
from ..files import file_digest
from .converted import Converted
from .read_weights import read_checkpoint
from .timm_handler import PREFIX, fetch


def convert_input(name: str, source: str | None = None, *, depth: int | None = None, ema: bool = False) -> Converted:
    """Converts a weights file, or the weights of a timm model, which timm downloads.

    Args:
        name: the path of a `.pth` or `.safetensors` file, or a timm model with or without `timm://`.
        source: as in :func:`convert_state_dict`; required for a file, implied for a timm model.
        depth: as in :func:`convert_state_dict`.
        ema: take the moving average of the weights from a file that has both.

    Raises:
        UserError: there is no such file or model, or it can't be read or converted.
    """
    path = Path(name)
    if path.is_file():
        if source is None:
            raise UserError("weights.no_source", f"source: give the project that {path} comes from")
        if re.search(r"res(net|next)(aa|blur)", path.name):
            # timm's tensors of such a network fit a plain one.
            raise UserError(
                "weights.unsupported_network", f"{path.name}: its strides are anti-aliased; use other weights"
            )
        state_dict = read_checkpoint(path, ema=ema)["model"]
        return Converted.from_state_dict(state_dict, source, depth=depth, sha256=file_digest(path))
    model = name.removeprefix(PREFIX)
    if "/" in model or re.search(r"\.(pth|pt|pkl|safetensors)$", model):
        raise UserError("weights.not_found", f"{path}: there is no such file in {path.absolute().parent}; give another")
    if ema:
        raise UserError("weights.no_ema", f"{name}: --ema is for a file; timm has one set of weights of this name")
    return fetch(model, depth=depth)
