"""What a user names as weights to convert: a file, or a name of timm's."""

import re
from hashlib import file_digest
from pathlib import Path

from ..errors import UserError
from .converted import Converted
from .read_weights import read_checkpoint
from .timm_handler import PREFIX, fetch, refuse_look_alike, source_of


def convert_input(name: str, source: str | None = None, *, depth: int | None = None) -> Converted:
    """Converts a `.pth` or `.safetensors` file, or weights that timm fetches.

    Args:
        name: a path, or a name of timm's with or without `timm://`.
        source: as in :func:`convert_state_dict`; a name of timm's implies its own.
        depth: as in :func:`convert_state_dict`.

    Raises:
        UserError: there is no such file, it can't be read, or it can't be converted.
    """
    path = Path(name)
    if path.is_file():
        if source is None:
            raise UserError(f"--source: say whose file {path} is; nothing in it says so")
        refuse_look_alike(path.name)
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        state_dict = read_checkpoint(path)["model"]
        return Converted.from_state_dict(state_dict, source, depth=depth, sha256=digest)
    model = name.removeprefix(PREFIX)
    if "/" in model or re.search(r"\.(pth|pt|pkl|safetensors)$", model):
        raise UserError(f"there is no file {path} (looked for in {path.absolute().parent})")
    if source not in (None, source_of(model)):
        raise UserError(f"--source {source}: {model} of timm is of source {source_of(model)}; leave --source out")
    return fetch(model, depth=depth)
