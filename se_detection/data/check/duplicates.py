"""The same image more than once: within a split, and in two."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..image_files import map_files
from .annotated_folder import AnnotatedFolder

K = TypeVar("K")
Look = NDArray[np.float32]
Looks = dict[str, Look]

# Where 9×8 grey pixels grow brighter to the right: 64 signs, of which two unrelated images differ in about half.
WIDTH, HEIGHT = 9, 8
# 179 pairs of one COCO image at two sizes and qualities differ in at most 5 signs.
SAME = 8
# 5.7 million pairs of different COCO images differ in at least 4.
NEAR = 2
ROWS = 256


class Overlap(NamedTuple):
    """Images that two splits have in common, as pairs of file names.

    Args:
        same_content: the same bytes.
        same_look: the same name (without folders) and look: another size or compression of one image.
        near_look: other names, but almost the same look: copies, or two images of one scene.
        same_name: the same `file_name`, where one of the files is not there to be compared.
    """

    same_content: list[tuple[str, str]]
    same_look: list[tuple[str, str]]
    near_look: list[tuple[str, str]]
    same_name: list[tuple[str, str]]


def find_overlap(split: AnnotatedFolder, other: AnnotatedFolder) -> Overlap:
    """Compares two splits by content, by name and by look."""
    files, others = split.files(), other.files()
    both = {(owner, name): path for owner, named in enumerate((files, others)) for name, path in named.items()}
    same_content = [
        (name, min(twins))
        for group in same_files(both)
        if (twins := [name for owner, name in group if owner == 1])
        for owner, name in group
        if owner == 0
    ]
    known = {name for name, _ in same_content}
    looks = _looks({name: path for name, path in files.items() if name not in known}) if others else {}
    same_look, near_look = [], []
    for name, theirs, difference in _similar(looks, _looks(others) if files else {}):
        if PurePath(name).name == PurePath(theirs).name:
            same_look.append((name, theirs))
        elif difference <= NEAR:
            near_look.append((name, theirs))
    their_names = {image["file_name"] for _, image in other.images()}
    same_name = [
        (name, name)
        for name in dict.fromkeys(image["file_name"] for _, image in split.images())
        if name in their_names and not (name in files and name in others)
    ]
    return Overlap(same_content, same_look, near_look, same_name)


def same_files(files: Mapping[K, Path]) -> list[list[K]]:
    """Groups of two or more that are the same bytes; only files of the same length are read."""
    lengths = _groups(files, lambda path: path.stat().st_size)
    candidates = {key: files[key] for group in lengths for key in group}
    paths = sorted(set(candidates.values()))
    digests = dict(zip(paths, map_files(_digest, paths, "comparing images"), strict=True))
    return _groups(candidates, lambda path: digests[path] or path)


def _groups(files: Mapping[K, Path], key: Callable[[Path], object]) -> list[list[K]]:
    groups = defaultdict(list)
    for name, path in files.items():
        groups[key(path)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _digest(path: Path) -> bytes | None:
    """Of the content; None where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _looks(files: Mapping[str, Path]) -> Looks:
    """The looks of the images that can be decoded and are not all but plain."""
    found = zip(files, map_files(_look, list(files.values()), "comparing images"), strict=True)
    return {name: look for name, look in found if look is not None}


def _look(path: Path) -> Look | None:
    """A difference hash: 64 signs, ±1, the same at any size and quality; None of what has none."""
    try:
        with Image.open(path) as image:
            image.draft("L", (WIDTH * 8, HEIGHT * 8))
            grey = np.asarray(ImageOps.exif_transpose(image).convert("L").resize((WIDTH, HEIGHT)), dtype=np.int64)
    except Exception:  # of whatever class: see `image_files.decode`
        return None
    brighter = (grey[:, 1:] > grey[:, :-1]).ravel()
    return np.where(brighter, 1, -1).astype(np.float32) if brighter.any() else None


def _similar(looks: Looks, others: Looks) -> Iterator[tuple[str, str, int]]:
    """Names of images that differ in no more than `SAME` signs, and in how many."""
    if not looks or not others:
        return
    names, theirs = list(looks), list(others)
    matrix = np.stack(list(others.values())).T
    for start in range(0, len(names), ROWS):
        rows = np.stack([looks[name] for name in names[start : start + ROWS]])
        differences = (rows.shape[1] - rows @ matrix) / 2
        for row, column in np.argwhere(differences <= SAME):
            yield names[start + row], theirs[column], int(differences[row, column])
