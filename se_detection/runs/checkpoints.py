"""The checkpoint files of a run, and which of them is the newest whole one."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.checkpointer import LAST
from ..checkpoint.read_weights import check_archive
from ..errors import UserError

# What a training leaves: after a number of iterations (counted from 0), at its end, and before its first.
NUMBERED = re.compile(r"model_(\d+)\.pth")
FINAL, INITIAL = "model_final.pth", "model_initial.pth"


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's archive is complete and its checksums are right, which torch.load does not look at.

    Raises:
        UserError: the file can't be read, whatever it holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
            return archive.testzip() is None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it readable, or move it away") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return False


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint that a run goes on from, and the broken ones that are newer.

    It is the one that `last_checkpoint` names, or else the latest by its name.

    Returns:
        The newest whole checkpoint, or None where the run has none yet; and those before it that are broken.

    Raises:
        UserError: all that there are is broken, or gone, or `last_checkpoint` names something else.
    """
    broken: list[Path] = []
    for path in _newest_first(folder):
        if is_whole(path):
            return path, broken
        broken.append(path)
    if broken:
        raise UserError(
            f"{folder}: no whole checkpoint is left ({', '.join(path.name for path in broken)}: truncated or corrupt); "
            "start anew with --overwrite, or in another OUTPUT_DIR"
        )
    if named := _named(folder):
        raise UserError(
            f"{folder}: {LAST} names {named.name}, which is not there, nor any other checkpoint; bring it back, or "
            "start anew with --overwrite, or in another OUTPUT_DIR"
        )
    return None, []


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """Those saved during training by their iterations, the oldest first."""
    found = {int(match[1]): path for path in folder.glob("model_*.pth") if (match := NUMBERED.fullmatch(path.name))}
    return dict(sorted(found.items()))


def _named(folder: Path) -> Path | None:
    tag = folder / LAST
    if not tag.is_file():
        return None
    with tag.open("rb") as file:
        name = file.read(256).decode(errors="replace").strip()
    # A broken one is set aside, and what a stranger's folder names is none of it.
    if not name or Path(name).name != name:
        raise UserError(f"{tag} names {name!r}, which is no file in its folder; remove it")
    return folder / name


def _newest_first(folder: Path) -> Iterator[Path]:
    named = _named(folder)
    if named is not None and os.path.isfile(named):
        yield named
    others = list(reversed(numbered_checkpoints(folder).values()))
    final = folder / FINAL
    if final.is_file():
        # A run that ended and was made longer has later ones than its old end.
        longer = bool(others) and others[0].stat().st_mtime > final.stat().st_mtime
        others.insert(int(longer), final)
    yield from (path for path in [*others, folder / INITIAL] if path.is_file() and path != named)
