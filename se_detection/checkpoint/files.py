"""The checkpoint files of a run, and which of them is the newest whole one."""

import logging
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

LAST = "last_checkpoint"
# What a training leaves: after a number of iterations (counted from 0), at its end, and before its first.
NUMBERED = re.compile(r"model_(\d+)\.pth")
FINAL, INITIAL = "model_final.pth", "model_initial.pth"
CORRUPT = ".corrupt"

logger = logging.getLogger(__name__)


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
