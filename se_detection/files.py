"""Atomic writing of files, checks of output paths, and JSON."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

UNFINISHED = ".part"
# The end of the temporary names of :func:`write_whole`, for glob.
TEMPORARY = "." + "[0-9a-f]" * 8 + UNFINISHED
# Stack frames that are reserved for code that later walks through the content of a JSON file.
FRAMES = 250


def parse_json(data: bytes) -> Any:
    """Parses JSON in UTF-8, also with a byte order mark, or UTF-16 or -32.

    Raises:
        ValueError: it is not JSON, or it is nested so deeply that code which compares or writes it could fail.
    """
    try:
        return _parse(data.decode(json.detect_encoding(data)), FRAMES)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _parse(text: str, frames: int) -> Any:
    return _parse(text, frames - 1) if frames else json.loads(text)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: under a temporary name of its own, which is synced and then renamed.

    A killed process leaves the temporary file.

    Raises:
        OSError: the file can't be written, for example because the disk is full; an existing file is unchanged.
    """
    # The longest name that a file may have leaves no room for more.
    part = path.with_name(f"{path.name[:40]}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save hides it behind another exception.
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__
        if reason is not None:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


def check_output(
    path: Path, *, inputs: Iterable[Path] = (), overwrite: bool | None = None, creates_folder: bool = False
) -> None:
    """Checks that a file may be written.

    Args:
        path: the file.
        inputs: files that are read.
        overwrite: the flag `--overwrite`; None if the caller has no such flag.
        creates_folder: the writer creates a missing folder.

    Raises:
        UserError: it is one of the inputs, it exists and is not to be overwritten, or its folder does not exist.
    """
    if os.path.realpath(path) in {os.path.realpath(other) for other in inputs}:
        raise UserError("output.is_input", f"{path} is both read and written; choose another name for the output")
    if path.is_dir():
        raise UserError("output.is_folder", f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        how = "remove it" if overwrite is None else "replace it with --overwrite"
        raise UserError("output.exists", f"{path} already exists; choose another name, or {how}")
    if creates_folder:
        check_folder(path.parent)
    elif not path.parent.is_dir():
        raise UserError("output.no_folder", f"{path}: there is no folder {path.parent}; create it, or choose another")


def check_folder(folder: Path) -> None:
    """Raises a :class:`UserError` if a folder doesn't exist and can't be created, because its path has a file."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError("output.is_file", f"{existing} is a file; choose another output folder")


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Writes a JSON file atomically.

    Raises:
        OSError: the file can't be written; an existing file is unchanged.
    """
    data = json.dumps(content, indent=indent).encode() + b"\n"
    write_whole(path, lambda file: file.write(data))


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError("file.unreadable", f"{path}: {error.strerror}; give another path") from error
    except ValueError as error:
        raise UserError("file.not_json", f"{path} is not valid JSON ({error}); get or write it again") from error


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """SHA-256 or another digest of hashlib, in hexadecimal."""
    digest = hashlib.new(algorithm)
    # Not by hashlib.file_digest, which is new in Python 3.11.
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
