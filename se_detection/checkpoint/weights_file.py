"""Finds the file of the weights that a user names: a path, or a URL or name, which is downloaded once."""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from detectron2.checkpoint.catalog import ModelCatalog, ModelCatalogHandler
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common import download as iopath_download
from iopath.common.file_io import get_cache_dir

from ..errors import UserError
from ..files import file_digest

# In seconds: how long a server may send nothing. Python's default is to wait without end.
TIMEOUT = 30
# torch.hub's file names end with the first digits of their SHA-256; unlike a date, they have letters. In Hugging Face's
# cache, the whole digest is the name.
SHA256_IN_NAME = re.compile(r"(?:.*-)?([0-9a-f]{64}|(?<=-)(?=\d*[a-f])[0-9a-f]{8,63})(?:\.\w+)?")


def find_weights(weights: str) -> Path:
    """The file of `MODEL.WEIGHTS`; a URL or name (`timm://`, `detectron2://`, `catalog://`) is downloaded into a cache.

    Args:
        weights: not empty; may end with a query, such as `?matching_heuristics=True`, which detectron2 reads.

    Raises:
        UserError: there is no such file, it can't be downloaded, or it has another SHA-256 than its name says.
    """
    name = weights.split("?")[0]
    if "://" not in name:
        if not Path(name).is_file():
            where = Path(name).absolute().parent
            raise UserError("weights.not_found", f"MODEL.WEIGHTS: there is no file {name} in {where}; check its path")
        return Path(name)
    url = name
    try:
        url = _url(name)
        with _limited():
            path = Path(PathManager.get_local_path(url))
    except UserError:
        raise
    except Exception as error:  # of any class: a path handler may use any client
        raise not_downloaded(
            name, error, f"download {url} on a machine that can, and set MODEL.WEIGHTS to the file"
        ) from error
    if not path.is_file():
        scheme = name.partition("://")[0]
        raise UserError(
            "weights.not_found", f"{name}: {scheme}:// is not supported; download the file, and give its path"
        )
    check_download(path)
    return path


def download(url: str, folder: Path) -> Path:
    """Downloads a file into a folder; with a progress bar.

    Raises:
        OSError: it can't be downloaded, or is incomplete.
    """
    with _limited():
        return Path(iopath_download.download(url, str(folder)))


def cached_file(name: str, make: Callable[[], Callable[[Path], object]], *, force: bool = False) -> Path:
    """The file of a name in this project's cache; if it is missing, `make` gives the function that writes it.

    Args:
        force: write it again.
    """
    cached = Path(get_cache_dir(), "se_detection", name)
    if force or not cached.exists():
        write = make()
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, so that no other process or run reads a partial file.
        part = cached.with_name(f"{cached.stem}.{os.getpid()}.part.pth")
        write(part)
        part.replace(cached)
    return cached


def not_downloaded(name: str, error: Exception, remedy: str) -> UserError:
    """The error of a download: its name, the reason, and what to do."""
    text = str(error.reason if type(error) is URLError else error)
    reason = " ".join(text.split())[:200] or type(error).__name__
    return UserError("weights.no_download", f"{name}: the weights could not be downloaded ({reason}); {remedy}")


def check_download(path: Path) -> None:
    """Compares a file with the SHA-256 in its name, if there is one; follows links.

    Raises:
        UserError: the file has another SHA-256.
    """
    file = path.resolve()
    expected = SHA256_IN_NAME.fullmatch(file.name)
    if expected and not (digest := file_digest(file)).startswith(expected[1]):
        raise UserError(
            "weights.wrong_sha256",
            f"{file}: its SHA-256 is {digest}, but its name says {expected[1]}; remove it to download it again, or if "
            "the name does not contain a SHA-256, download the file yourself and give its path",
        )


def _url(name: str) -> str:
    """The URL of one of detectron2's names."""
    if name.startswith(ModelCatalogHandler.PREFIX):
        try:
            name = ModelCatalog.get(name.removeprefix(ModelCatalogHandler.PREFIX))
        except (LookupError, RuntimeError) as error:
            raise UserError(
                "weights.not_found", f"{name}: detectron2's catalogue has no such weights; check the name"
            ) from error
    if name.startswith(Detectron2Handler.PREFIX):
        name = Detectron2Handler.S3_DETECTRON2_PREFIX + name.removeprefix(Detectron2Handler.PREFIX)
    return name


@contextmanager
def _limited() -> Iterator[None]:
    """Limits the time that iopath waits for a server, and drops its log of a failure, which is raised too."""
    log, before = logging.getLogger("iopath.common.download"), socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    log.addFilter(_is_no_failure)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        log.removeFilter(_is_no_failure)


def _is_no_failure(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR
