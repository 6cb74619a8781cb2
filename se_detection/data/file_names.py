"""Finds the image files that are meant by names which are not in the folder."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .coco_format import is_inside

Parts = tuple[str, ...]


def find_renamed(image_root: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The files that missing names stand for, where name and file belong together one to one.

    Names may have backslashes, percent codes, or another case or Unicode form than the file. They may be URLs, or have
    more or fewer leading folders.

    Args:
        image_root: the folder of the images, which is searched if a file is missing.
        names: the `file_name` of all images.
    """
    names = dict.fromkeys(names)
    present = {name for name in names if is_inside(name) and os.path.isfile(os.path.join(image_root, name))}
    if len(present) == len(names):
        return {}
    used = set(map(os.path.normpath, present))
    files: dict[str, list[tuple[Parts, str]]] = defaultdict(list)
    for folder, _, contents in os.walk(image_root):
        for path in (os.path.relpath(os.path.join(folder, file), image_root) for file in contents):
            parts = _parts(path)
            if parts and path not in used and is_inside(path):
                files[parts[-1]].append((parts, Path(path).as_posix()))
    meant = {name: _choose(_parts(name), files) for name in names if name not in present}
    found = {name: path for name, path in meant.items() if path}
    claims = Counter(found.values())
    return {name: path for name, path in found.items() if claims[path] == 1}


def _parts(name: str) -> Parts:
    if "://" in name:
        # Without the query; a broken URL is a name as any other.
        try:
            name = urlsplit(name).path
        except ValueError:
            return ()
    plain = unicodedata.normalize("NFC", unquote(name)).casefold().replace("\\", "/")
    return tuple(part for part in plain.split("/") if part not in ("", ".", ".."))


def _choose(parts: Parts, files: dict[str, list[tuple[Parts, str]]]) -> str | None:
    """The file with the longest common end, if there is one such file, and the rest is leading folders of one side."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for other, path in files.get(parts[-1], ()) if parts else ():
        common = min(len(parts), len(other))
        if parts[-common:] == other[-common:]:
            by_length[common].append(path)
    best = by_length[max(by_length)] if by_length else []
    return best[0] if len(best) == 1 else None
