"""A folder of images by class (`train/<class>/`, `val/<class>/`), or a `.tar.gz` of one, as detectron2 data sets."""

import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import get_cache_dir
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset
from tqdm import tqdm

from ..errors import UserError

TRAIN, VAL = "image_folder_train", "image_folder_val"
CHUNK = 1 << 20
# Images are compressed already, and hardly become smaller in an archive; zeros become a thousandth.
MAX_RATIO = 100
SPLITS = {TRAIN: "train", VAL: "val"}


def find_image_folder(path: Path) -> Path:
    """The folder that holds `train/` and `val/`: `path`, or what an archive holds, unpacked into a cache.

    An archive is unpacked once; links, devices and files that would leave the folder are refused (the last two by
    Python's `data` filter), and one that would grow to more than a hundred times its size.

    Raises:
        UserError: there is neither, or the archive can't be read.
    """
    if not path.exists():
        raise UserError(f"--data {path}: there is no such folder or archive")
    root = path if path.is_dir() else _unpack(path)
    for folder in (root, *sorted(item for item in root.iterdir() if item.is_dir())):
        if all((folder / split).is_dir() for split in SPLITS.values()):
            return folder
    raise UserError(f"--data {path}: it holds no train/ and val/, with a folder of images for each class in both")


def register_image_folder(folder: Path) -> None:
    """Registers both splits with detectron2; an item has `file_name` and `label`, a class's place in the alphabet.

    Raises:
        UserError: a class has no images, or the splits have different classes.
    """
    classes, indices = _classes(folder / "train")
    others, _ = _classes(folder / "val")
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise UserError(f"--data {folder}: train/ and val/ have different classes: {', '.join(odd[:5])}")
    for name, split in SPLITS.items():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, lambda root=folder / split: _read(root, indices))
        MetadataCatalog.get(name).set(thing_classes=classes, image_root=str(folder / split))


def _classes(root: Path) -> tuple[list[str], dict[str, int]]:
    with _explained():
        classes, indices = find_classes(root)
    return classes, indices


def _read(root: Path, classes: dict[str, int]) -> list[dict[str, Any]]:
    with _explained():
        samples = make_dataset(str(root), classes, IMG_EXTENSIONS)
    return [{"file_name": path, "label": label} for path, label in samples]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"--data: {' '.join(str(error).split())}") from error


def _unpack(archive: Path) -> Path:
    size, changed = archive.stat().st_size, archive.stat().st_mtime_ns
    key = hashlib.sha256(f"{archive.absolute()} {size} {changed}".encode()).hexdigest()[:16]
    cache = Path(get_cache_dir(), "se_detection", "images")
    target = cache / key
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # Renamed when whole: a run that is stopped here leaves no half of a data set.
    part = Path(mkdtemp(prefix=f"{key}.", dir=cache))
    try:
        with tarfile.open(archive) as file:
            unpacked = 0
            for member in tqdm(file, desc=f"unpacking {archive.name}", unit=" files", disable=None):
                unpacked += member.size
                if unpacked > MAX_RATIO * size:
                    raise UserError(
                        f"--data {archive}: it unpacks to more than {MAX_RATIO} times its size; no images do"
                    )
                # Python's filter lets those through that lead into the folder; images need none, and folders that
                # are links have been ways around it.
                if member.issym():
                    raise UserError(f"--data {archive}: {member.name!r} is a link; pack the files (tar --dereference)")
                file.extract(member, part, filter="data")
            _check_end(file)
        try:
            part.rename(target)
        except OSError:
            # Another process may have been faster.
            if not target.is_dir():
                raise
    except UserError:
        raise
    except Exception as error:  # of any class: of tar files, and of what compresses them
        raise UserError(f"--data {archive} can't be unpacked into {cache}: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _check_end(file: tarfile.TarFile) -> None:
    """Python takes a damaged header for the end of an archive, and reads no checksum that stands after it."""
    content = file.fileobj
    assert content is not None
    content.seek(file.offset)
    block = content.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it is damaged, or its end is missing")
    while content.read(CHUNK):
        pass
