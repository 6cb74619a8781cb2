"""Finds duplicate images, within one data set and in two."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...files import file_digest
from ..image_files import map_files, refuse_postscript
from .annotated_folder import AnnotatedFolder

K = TypeVar("K")
Look = NDArray[np.float32]
Looks = dict[str, Look]

# The signs of the horizontal differences of 9×8 grey pixels: 64 signs; unrelated images differ in about half of them.
WIDTH, HEIGHT = 9, 8
# 179 pairs of one COCO image at two sizes and qualities differ in at most 5 signs.
SAME = 8
# 5.7 million pairs of different COCO images differ in at least 4.
NEAR = 2
ROWS = 256


def find_overlap(annotated: AnnotatedFolder, other: AnnotatedFolder) -> dict[str, list[tuple[str, str]]]:
    """Images that two data sets have in common, as pairs of file names.

    Returns:
        `same-content`: pairs with the same bytes. `same-look`: the same name (without folders) and look, such as
        another size or compression of one image. `near-look`: other names, but almost the same look, such as copies or
        two images of one scene. `same-name`: the same `file_name`, but a file is missing and can't be compared.
    """
    files, others = annotated.files(), other.files()
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
    names, their_names = ({image["file_name"]: None for _, image in each.images()} for each in (annotated, other))
    same_name = [(name, name) for name in names if name in their_names and not (name in files and name in others)]
    return {"same-content": same_content, "same-look": same_look, "near-look": near_look, "same-name": same_name}


def same_files(files: Mapping[K, Path]) -> list[list[K]]:
    """Groups of files with the same content; only files of the same length are read."""
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


def _digest(path: Path) -> str | None:
    """The SHA-256 of the content; None if the file can't be read."""
    try:
        return file_digest(path)
    except OSError:
        return None


def _looks(files: Mapping[str, Path]) -> Looks:
    """The looks of the images that can be decoded and are not uniform."""
    found = zip(files, map_files(_look, list(files.values()), "comparing images"), strict=True)
    return {name: look for name, look in found if look is not None}


def _look(path: Path) -> Look | None:
    """A difference hash of 64 signs (±1), independent of size and quality; None if the image is uniform or broken."""
    try:
        refuse_postscript(path)
        with Image.open(path) as image:
            image.draft("L", (WIDTH * 8, HEIGHT * 8))
            grey = np.asarray(ImageOps.exif_transpose(image).convert("L").resize((WIDTH, HEIGHT)), dtype=np.int64)
    except Exception:  # of any class: see `image_files.decode`
        return None
    brighter = (grey[:, 1:] > grey[:, :-1]).ravel()
    return np.where(brighter, 1, -1).astype(np.float32) if brighter.any() else None


def _similar(looks: Looks, others: Looks) -> Iterator[tuple[str, str, int]]:
    """Pairs of images that differ in at most `SAME` signs: both names, and the number of signs."""
    if not looks or not others:
        return
    names, theirs = list(looks), list(others)
    matrix = np.stack(list(others.values())).T
    for start in range(0, len(names), ROWS):
        rows = np.stack([looks[name] for name in names[start : start + ROWS]])
        differences = (rows.shape[1] - rows @ matrix) / 2
        for row, column in np.argwhere(differences <= SAME):
            yield names[start + row], theirs[column], int(differences[row, column])
