"""Files that a tool writes: nothing of a person's is replaced unasked, and none is left half written."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_whole


def check_output(path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False) -> None:
    """Makes sure that a file may be written.

    Raises:
        UserError: it is one of the inputs; it is there already and is not to be overwritten; there is no such folder.
    """
    if os.path.realpath(path) in {os.path.realpath(other) for other in inputs}:
        raise UserError(f"{path} is both read and written; choose another name for what is written")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; choose another name, or replace it with --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or choose another")


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Writes a file under a temporary name, then renames it.

    Raises:
        UserError: it can't be written.
    """
    data = json.dumps(content, indent=indent).encode() + b"\n"
    try:
        write_whole(path, lambda file: file.write(data))
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}); choose another place") from error
