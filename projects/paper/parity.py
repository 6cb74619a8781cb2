"""Compares the backbones with timm's networks of the same name, with random weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from se_detection.checkpoint.convert import CAFFE_SOURCES
from se_detection.checkpoint.converted import Converted
from se_detection.checkpoint.timm_handler import source_of
from se_detection.checkpoint.verify import relative_errors
from se_detection.errors import UserError

NAMES = (
    *(f"legacy_seresnet{depth}" for depth in (50, 101, 152)),
    *(f"legacy_seresnext{depth}_32x4d" for depth in (50, 101)),
    "legacy_senet154",
    *(f"seresnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"seresnext{depth}_32x4d" for depth in (50, 101)),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnext{depth}_32x4d" for depth in (50, 101)),
)


@dataclass(frozen=True)
class Parity:
    """A timm network, its layout (`caffe` or `torchvision`), and the largest relative error at res2 to res5."""

    name: str
    layout: str
    error: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_parity(names: Sequence[str] = NAMES) -> list[Parity]:
    """:func:`parity` of several networks, with a progress bar."""
    return [parity(name) for name in tqdm(names, "networks", leave=False)]


def parity(name: str) -> Parity:
    """Compares a backbone with timm's network, with the same random weights, in float64.

    Args:
        name: one of :data:`NAMES`, or another that :func:`source_of` accepts.

    Raises:
        UserError: timm is not installed, or its network can't be converted.
    """
    source = source_of(name)
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError("parity needs timm: pip install timm") from error
    state_dict = timm.create_model(name).state_dict()
    # Random, as after training: the zeros and ones of new norms would hide swapped or missing tensors.
    for key in [key for key in state_dict if key.endswith(".running_mean")]:
        norm = key.removesuffix(".running_mean")
        state_dict[f"{norm}.weight"].uniform_(0.2, 0.6)
        state_dict[f"{norm}.bias"].normal_(std=0.2)
        state_dict[f"{norm}.running_mean"].normal_(std=0.2)
        state_dict[f"{norm}.running_var"].uniform_(0.5, 1.5)
    converted = Converted.from_state_dict(state_dict, source, sha256="")
    errors = relative_errors(converted)
    return Parity(name, "caffe" if source in CAFFE_SOURCES else "torchvision", max(map(max, errors.values())))
