"""The checkpoint files of a run: written whole or not at all, and the newest whole one found again."""

import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError

LAST = "last_checkpoint"
# What a training leaves: after a number of iterations (counted from 0), at its end, and before its first.
NUMBERED = re.compile(r"model_(\d+)\.pth")
FINAL, INITIAL = "model_final.pth", "model_initial.pth"
UNFINISHED, CORRUPT = ".part", ".corrupt"

logger = logging.getLogger(__name__)


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
        os.fsync(folder)
    finally:
        os.close(folder)


def _os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's archive is complete and its checksums are right, which torch.load does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def newest_checkpoint(folder: Path, *, set_aside: bool) -> Path | None:
    """The newest whole checkpoint of a run: the one that `last_checkpoint` names, or else the latest by its name.

    Args:
        set_aside: rename broken ones, to `NAME.corrupt`, and say so; otherwise they are passed over.

    Raises:
        UserError: all that there are is broken.
    """
    broken: list[Path] = []
    for path in _newest_first(folder):
        if is_whole(path):
            if broken:
                logger.warning("Going on from %s instead", path)
            return path
        broken.append(path)
        if set_aside:
            aside = path.with_name(path.name + CORRUPT)
            path.replace(aside)
            logger.warning("%s is truncated or corrupt; it was set aside as %s", path, aside.name)
    if broken:
        raise UserError(
            f"{folder}: no whole checkpoint is left ({', '.join(path.name for path in broken)}: truncated or corrupt); "
            "start anew with --overwrite, or in another OUTPUT_DIR"
        )
    return None


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Those saved during training, the oldest first."""
    found = {int(match[1]): path for path in folder.glob("model_*.pth") if (match := NUMBERED.fullmatch(path.name))}
    return [found[number] for number in sorted(found)]


def _newest_first(folder: Path) -> Iterator[Path]:
    tag = folder / LAST
    named = folder / tag.read_text(encoding="utf-8", errors="replace").strip() if tag.is_file() else None
    if named is not None and named.is_file():
        yield named
    others = [folder / FINAL, *reversed(numbered_checkpoints(folder)), folder / INITIAL]
    yield from (path for path in others if path.is_file() and path != named)
