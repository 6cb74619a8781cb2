"""The checkpoint files of a run, and the newest one that is not corrupt."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.checkpointer import LAST
from ..checkpoint.read_weights import check_archive
from ..errors import UserError
from .run_folder import FINAL, INITIAL

# The checkpoint after an iteration, counted from 0.
NUMBERED = re.compile(r"model_(\d+)\.pth")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's archive is complete and its checksums are right; torch.load does not check them.

    Raises:
        UserError: the file can't be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
            return archive.testzip() is None
    except OSError as error:
        message = f"{path}: {error.strerror}; make it readable, or move it away"
        raise UserError("file.unreadable", message) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint from which a run resumes, and the corrupt ones that are newer.

    It is the one that `last_checkpoint` names, or else the latest by its name.

    Returns:
        The newest whole checkpoint, or None if the run has none yet; and the newer ones, which are corrupt.

    Raises:
        UserError: all checkpoints are corrupt or missing, or `last_checkpoint` does not hold the name of a file.
    """
    corrupt: list[Path] = []
    for path in _newest_first(folder):
        if is_whole(path):
            return path, corrupt
        corrupt.append(path)
    if corrupt:
        problem = f"all checkpoints are corrupt ({', '.join(path.name for path in corrupt)})"
    elif named := _named(folder):
        problem = f"{LAST} names {named.name}, but no checkpoint exists"
    else:
        return None, []
    remedy = "restore one, or start again with --overwrite, or in another OUTPUT_DIR"
    raise UserError("run.no_checkpoint", f"{folder}: {problem}; {remedy}")


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints saved during training by iteration, the oldest first."""
    found = {int(match[1]): path for path in folder.glob("model_*.pth") if (match := NUMBERED.fullmatch(path.name))}
    return dict(sorted(found.items()))


def _named(folder: Path) -> Path | None:
    tag = folder / LAST
    if not tag.is_file():
        return None
    with tag.open("rb") as file:
        name = file.read(256).decode(errors="replace").strip()
    if not name or Path(name).name != name:
        message = f"{tag} names {name!r}, which is not a file in its folder; remove it"
        raise UserError("run.no_checkpoint", message)
    return folder / name


def _newest_first(folder: Path) -> Iterator[Path]:
    named = _named(folder)
    if named is not None and os.path.isfile(named):
        yield named
    others = list(reversed(numbered_checkpoints(folder).values()))
    final = folder / FINAL
    if final.is_file():
        # A finished run that was extended has newer checkpoints than its old final one.
        longer = bool(others) and others[0].stat().st_mtime > final.stat().st_mtime
        others.insert(int(longer), final)
    yield from (path for path in [*others, folder / INITIAL] if path.is_file() and path != named)
