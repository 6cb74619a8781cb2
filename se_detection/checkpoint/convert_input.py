"""Converts the weights that a user names: a file, or a timm model (`timm://NAME`)."""

import re
from hashlib import file_digest
from pathlib import Path

from ..errors import UserError
from .converted import Converted
from .read_weights import read_checkpoint
from .timm_handler import PREFIX, fetch, refuse_look_alike, source_of


def convert_input(name: str, source: str | None = None, *, depth: int | None = None) -> Converted:
    """Converts a weights file, or the weights of a timm model, which timm downloads.

    Args:
        name: the path of a `.pth` or `.safetensors` file, or a timm model with or without `timm://`.
        source: as in :func:`convert_state_dict`; required for a file, implied for a timm model.
        depth: as in :func:`convert_state_dict`.

    Raises:
        UserError: there is no such file or model, or it can't be read or converted.
    """
    path = Path(name)
    if path.is_file():
        if source is None:
            raise UserError(f"source: name the project that {path} comes from; the file does not say")
        refuse_look_alike(path.name)
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        state_dict = read_checkpoint(path)["model"]
        return Converted.from_state_dict(state_dict, source, depth=depth, sha256=digest)
    model = name.removeprefix(PREFIX)
    if "/" in model or re.search(r"\.(pth|pt|pkl|safetensors)$", model):
        raise UserError(f"there is no file {path} (looked for in {path.absolute().parent})")
    if source not in (None, source_of(model)):
        raise UserError(f"source: {source}, but {model} has the source {source_of(model)}; omit source")
    return fetch(model, depth=depth)
