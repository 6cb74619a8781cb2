"""Weights of mmpretrain and pytorchcv by name, as in `MODEL.WEIGHTS: mmpretrain://NAME` or `pytorchcv://NAME`."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError
from ..files import file_digest
from .converted import Converted
from .read_weights import read_checkpoint
from .weights_file import cached_file, download, not_downloaded

MMPRETRAIN = "mmpretrain://"
PYTORCHCV = "pytorchcv://"


@dataclass(frozen=True, kw_only=True)
class ReleasedFile:
    """A weights file on the server of its project.

    Args:
        name: for `MODEL.WEIGHTS`, with its scheme.
        file: the name of the file, which ends with the first digits of its digest.
        url: of the file, or of a zip archive that contains it.
        algorithm: SHA-256 or SHA-1, as in hashlib.
        digest: the first digits or all, in hexadecimal.
        stride_in_1x1: as in `MODEL.RESNETS`; the tensors do not show it.
    """

    name: str
    file: str
    url: str
    algorithm: str
    digest: str
    stride_in_1x1: bool = False

    @property
    def source(self) -> str:
        """As in :func:`convert_state_dict`."""
        return self.name.partition("://")[0]


# The file names are those of mmpretrain's configs/{resnet,seresnet}/metafile.yml (Apache-2.0).
MMPRETRAIN_SERVER = "https://download.openmmlab.com/mmclassification/v0"
MMPRETRAIN_FILES = (
    "resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth",
    "resnet/resnet101_8xb32_in1k_20210831-539c63f8.pth",
    "resnet/resnet152_8xb32_in1k_20210901-4d7582fa.pth",
    "se-resnet/se-resnet50_batch256_imagenet_20200804-ae206104.pth",
    "se-resnet/se-resnet101_batch256_imagenet_20200804-ba5b51d4.pth",
)

# Top-5 error in 1/100 %, SHA-1 and release, from pytorchcv/models/common/model_metainfos.csv of version 0.0.74 (MIT).
PYTORCHCV_SERVER = "https://github.com/osmr/imgclsmob/releases/download"
PYTORCHCV_FILES = {
    "resnet18": ("0896", "77a56f155214819bfc79ff09795370f955b20e6d", "v0.0.478"),
    "seresnet18": ("0961", "022123a5e88c9917e63165f5b5a7808a606d452a", "v0.0.355"),
    "resnet50": ("0633", "b00d1c8e52aa7a2badc705b1545aaf6ccece6ce9", "v0.0.329"),
    "seresnet50": ("0575", "004bfde422c860c4f11b1e1190bb5a8db477d939", "v0.0.441"),
    "resnet50b": ("0638", "8a5473ef985d65076a3758117ad5700d726bd952", "v0.0.308"),
    "seresnet50b": ("0539", "459e6871e944d1c7102ee9c055ea428b8d9a168c", "v0.0.387"),
    "resnet101": ("0540", "65faf44721096a75fa72b875efb416513f864078", "v0.0.499"),
    "seresnet101": ("0460", "37851448605dae67bbf83ff8e7f7e7cc367e1746", "v0.0.533"),
    "resnet101b": ("0530", "f059ba3c7fa4a65f2da6e17f3718662d59836637", "v0.0.357"),
    "seresnet101b": ("0487", "b83a20fd2ad9a32e0fe5cb3daef45aac03ea3194", "v0.0.460"),
    "resnet152": ("0468", "d46977ddb5660bb523e9f2de50e5d16cef8e3027", "v0.0.518"),
    "seresnet152": ("0439", "7a6b02ac25caccb0420eea542c625f9b0bfb3e03", "v0.0.538"),
    "resnext50_32x4d": ("0560", "d7976503d13734114364e0dfef1d22f6d76546d9", "v0.0.498"),
    "seresnext50_32x4d": ("0451", "52029a7f6170873b2d50a7016fba053e98183f7b", "v0.0.505"),
    "resnext101_32x4d": ("0434", "5ac165981bac62627719b3362b31b456cba05df4", "v0.0.530"),
    "seresnext101_32x4d": ("0467", "c738e758c535fac87027fc4b9271a7cb95442505", "v0.0.529"),
    "resnext101_64x4d": ("0452", "60d1913ec591af7786056b1d87b3add07fdcf2e1", "v0.0.544"),
    "seresnext101_64x4d": ("0428", "ea9d98df431d53251011099f317cd20fa2307d1b", "v0.0.561"),
}


def _mmpretrain(path: str) -> ReleasedFile:
    file = Path(path).name
    digest = Path(path).stem.rpartition("-")[2]
    url = f"{MMPRETRAIN_SERVER}/{path}"
    return ReleasedFile(name=MMPRETRAIN + Path(path).stem, file=file, url=url, algorithm="sha256", digest=digest)


def _pytorchcv(network: str) -> ReleasedFile:
    error, digest, release = PYTORCHCV_FILES[network]
    file = f"{network}-{error}-{digest[:8]}.pth"
    return ReleasedFile(
        name=PYTORCHCV + network,
        file=file,
        url=f"{PYTORCHCV_SERVER}/{release}/{file}.zip",
        algorithm="sha1",
        digest=digest,
        stride_in_1x1=has_stride_in_1x1(network),
    )


def has_stride_in_1x1(network: str) -> bool:
    """Whether the bottlenecks of pytorchcv's network have their stride in the first 1x1 (`resnet50`, not `resnet50b`).

    Args:
        network: its name, or the name of its file.
    """
    return bool(re.match(r"(se)?resnet\d+(?!b)(?!\d)", network))


RELEASED = {file.name: file for file in (*map(_mmpretrain, MMPRETRAIN_FILES), *map(_pytorchcv, PYTORCHCV_FILES))}


def find_released(weights: str) -> ReleasedFile | None:
    """The released file that `MODEL.WEIGHTS` names, by its name with scheme or as a local file; None if it is another.

    Raises:
        UserError: the scheme is one of this module's, and the name is not known.
    """
    by_file = {file.file: file for file in RELEASED.values()}
    if "://" not in weights:
        return by_file.get(Path(weights).name)
    if not weights.startswith((MMPRETRAIN, PYTORCHCV)):
        return None
    name = weights.removesuffix(".pth")
    if name not in RELEASED:
        scheme = f"{weights.partition('://')[0]}://"
        known = ", ".join(each.removeprefix(scheme) for each in RELEASED if each.startswith(scheme))
        as_it_is = ", or the network as it is, with MODEL.TIMM.NAME pytorchcv/NAME" if scheme == PYTORCHCV else ""
        raise UserError(
            "weights.not_found",
            f"{weights}: not one of the ResNets and SE-ResNets of {scheme} that are known here; use one of {known}"
            f"{as_it_is}; or convert a file (se-det convert)",
        )
    return RELEASED[name]


def released_file(weights: str, *, force: bool = False) -> Path:
    """The cached file of a released one, converted.

    Args: as of :func:`fetch_released`.
        force: make it again.

    Raises:
        UserError: as :func:`fetch_released`.
    """
    released = _known(weights)
    name = f"{released.source}-{Path(released.file).stem}.pth"
    return cached_file(name, lambda: fetch_released(weights).save, force=force)


def fetch_released(weights: str, *, depth: int | None = None) -> Converted:
    """Converts a released file, after checking its digest.

    Args:
        weights: its name with scheme, then it is downloaded; or a local copy.
        depth: as in :func:`convert_state_dict`.

    Raises:
        UserError: it is unknown, can't be downloaded or converted, or has another digest.
    """
    released = _known(weights)
    if "://" not in weights:
        return _converted(Path(weights), released, depth)
    with TemporaryDirectory() as folder:
        return _converted(_download(released, Path(folder)), released, depth)


def _known(weights: str) -> ReleasedFile:
    released = find_released(weights)
    if released is None:
        raise UserError("weights.not_found", f"{weights}: this is not a known file; use one of {', '.join(RELEASED)}")
    return released


def _converted(path: Path, released: ReleasedFile, depth: int | None) -> Converted:
    with path.open("rb") as file:
        is_page = file.read(64).lstrip()[:1] == b"<"
    digest = file_digest(path, released.algorithm)
    if not digest.startswith(released.digest):
        found = "is a web page, not weights" if is_page else f"has the {released.algorithm.upper()} {digest}"
        raise UserError(
            "weights.wrong_digest",
            f"{path.name} {found}, and the released file's starts with {released.digest[:8]}; get {released.url} again",
        )
    return Converted.from_state_dict(
        read_checkpoint(path)["model"],
        released.source,
        depth=depth,
        sha256=file_digest(path),
        stride_in_1x1=released.stride_in_1x1,
    )


def _download(released: ReleasedFile, folder: Path) -> Path:
    try:
        path = download(released.url, folder)
        if path.suffix == ".zip" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                path = Path(archive.extract(released.file, folder))
    except Exception as error:  # of any class: the client's errors, and those of a broken archive
        remedy = f"download {released.url} on a machine that can, and set MODEL.WEIGHTS to {released.file}"
        raise not_downloaded(released.name, error, remedy) from error
    return path
