"""Files that are written whole or not at all, and JSON that can be worked with."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

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


def read_json(path: Path) -> Any:
    """A file's content.

    Raises:
        UserError: there is no such file, or it holds no JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error})") from error


def check_html_file(path: Path, *, overwrite: bool) -> None:
    """Raises a :class:`UserError` if the file can't be written, or is there and not to be replaced."""
    if path.is_dir():
        raise UserError(f"--html {path} is a folder; name a file, such as {path / 'report.html'}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; choose another --html, or replace it with --overwrite")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"--html {path}: {existing} is a file; name a file in a folder")


def file_digest(path: Path) -> str:
    """SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
