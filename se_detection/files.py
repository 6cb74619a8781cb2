"""Files that are written whole or not at all, and JSON that can be worked with."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".part"
# How much of Python's stack the work on a file's content may take; json's parser takes what nesting needs.
FRAMES = 250


def parse_json(data: bytes) -> Any:
    """The content of JSON in UTF-8.

    Raises:
        ValueError: it is none, or is nested so deeply that what reads it again, compares or writes it could fail.
    """
    try:
        return _parse(data.decode("utf-8"), FRAMES)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parse(text: str, frames: int) -> Any:
    return _parse(text, frames - 1) if frames else json.loads(text)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name, syncs it, and renames it: whoever reads `path` finds a whole file.

    Raises:
        OSError: it can't be written, as on a full disk; what was there before is still there.
    """
    part = path.with_name(path.name + UNFINISHED)
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save hides it behind an error of its own archive.
        if reason := _os_error(error):
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Some network file systems can't, and the file is there all the same.
        with suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
