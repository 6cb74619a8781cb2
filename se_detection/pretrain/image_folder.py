"""Registers a folder of images by class (`train/<class>/`, `val/<class>/`), or an archive of one, as data sets."""

import hashlib
import shutil
import tarfile
from pathlib import Path
from tempfile import mkdtemp

from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import get_cache_dir
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from ..data.image_files import image_formats, is_image
from ..errors import UserError

TRAIN, VAL = "image_folder_train", "image_folder_val"
CHUNK = 1 << 20
# Images are compressed already; an archive of zeros can be a thousand times smaller than its content.
MAX_RATIO = 100
SPLITS = {TRAIN: "train", VAL: "val"}


def find_image_folder(path: Path) -> Path:
    """The folder that holds `train/` and `val/`; an archive is unpacked into a cache, once.

    An archive is refused if it has symbolic links, devices or paths that leave the folder (the last two by Python's
    `data` filter), or if it unpacks to more than a hundred times its size.

    Args:
        path: a folder or a `.tar` or `.tar.gz` archive, with `train/` and `val/` at the top or one level below.

    Raises:
        UserError: there is no such folder, or the archive can't be unpacked.
    """
    if not path.exists():
        raise UserError("data.not_found", f"--data {path}: there is no such folder or archive; check its path")
    root = path if path.is_dir() else _unpack(path)
    for folder in (root, *sorted(item for item in root.iterdir() if item.is_dir())):
        if all((folder / split).is_dir() for split in SPLITS.values()):
            return folder
    raise UserError(
        "data.no_classes", f"--data {path}: it must have train/ and val/, both with a folder of images for each class"
    )


def register_image_folder(folder: Path) -> list[Path]:
    """Registers both splits with detectron2; items have `file_name` and `label`, the index of the class by name.

    Returns:
        The files that are skipped, because they are not images.

    Raises:
        UserError: a class has no images, or the splits have different classes.
    """
    formats, skipped = image_formats(), []

    def is_used(file: str) -> bool:
        used = is_image(Path(file), formats)
        if not used:
            skipped.append(Path(file))
        return used

    try:
        sets = {name: ImageFolder(folder / split, is_valid_file=is_used) for name, split in SPLITS.items()}
    except FileNotFoundError as error:
        raise UserError("data.no_classes", f"--data: {' '.join(str(error).split())}") from error
    classes, val_classes = (images.classes for images in sets.values())
    if classes != val_classes:
        differing = ", ".join(sorted(set(classes) ^ set(val_classes))[:5])
        raise UserError(
            "data.other_classes",
            f"--data {folder}: train/ and val/ must have the same classes; these are in one of them: {differing}",
        )
    for name, images in sets.items():
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(
            name, lambda images=images: [{"file_name": path, "label": label} for path, label in images.samples]
        )
        MetadataCatalog.get(name).set(thing_classes=classes, image_root=images.root)
    return skipped


def _unpack(archive: Path) -> Path:
    size, modified = archive.stat().st_size, archive.stat().st_mtime_ns
    key = hashlib.sha256(f"{archive.absolute()} {size} {modified}".encode()).hexdigest()[:16]
    cache = Path(get_cache_dir(), "se_detection", "images")
    target = cache / key
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: an interrupted run leaves no partial data set.
    part = Path(mkdtemp(prefix=f"{key}.", dir=cache))
    try:
        with tarfile.open(archive) as file:
            unpacked = 0
            for member in tqdm(file, desc=f"unpacking {archive.name}", unit=" files", disable=None):
                unpacked += member.size
                if unpacked > MAX_RATIO * size:
                    raise UserError(
                        "data.bad_archive",
                        f"--data {archive}: it unpacks to more than {MAX_RATIO} times its size; pack only images",
                    )
                # Python's filter allows links inside the folder. Images don't need them, and linked folders have been
                # used to get around the filter.
                if member.issym():
                    raise UserError(
                        "data.bad_archive",
                        f"--data {archive}: {member.name!r} is a link; pack the files (tar --dereference)",
                    )
                file.extract(member, part, filter="data")
            _check_end(file)
        try:
            part.rename(target)
        except OSError:
            # Another process may have unpacked it at the same time.
            if not target.is_dir():
                raise
    except UserError:
        raise
    except Exception as error:  # of any class: tarfile and each compression raise their own
        reason = " ".join(str(error).split())
        raise UserError("data.bad_archive", f"--data {archive} can't be unpacked into {cache}: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _check_end(file: tarfile.TarFile) -> None:
    """Raises unless an archive is complete: tarfile takes a damaged header for the end, and skips the last checksum."""
    content = file.fileobj
    assert content is not None
    content.seek(file.offset)
    block = content.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it is damaged, or its end is missing")
    while content.read(CHUNK):
        pass
