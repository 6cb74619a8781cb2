"""Compares the backbones with timm's networks of the same name, with random weights."""

from collections.abc import Sequence
from typing import Any

import timm
from tabulate import tabulate

from se_detection.checkpoint.convert import CAFFE_SOURCES
from se_detection.checkpoint.converted import Converted
from se_detection.checkpoint.timm_handler import source_of
from se_detection.checkpoint.verify import relative_errors

NAMES = (
    *(f"legacy_seresnet{depth}" for depth in (50, 101, 152)),
    *(f"legacy_seresnext{depth}_32x4d" for depth in (50, 101)),
    "legacy_senet154",
    *(f"seresnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"seresnext{depth}_32x4d" for depth in (50, 101)),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnext{depth}_32x4d" for depth in (50, 101)),
)


def parity(name: str) -> dict[str, Any]:
    """Compares a backbone with timm's network, with the same random weights, in float64.

    Args:
        name: one of :data:`NAMES`, or another that :func:`source_of` accepts.

    Returns:
        `name`, `layout` (`caffe` or `torchvision`), and `error`, the largest relative error at res2 to res5.
    """
    source = source_of(name)
    state_dict = timm.create_model(name).state_dict()
    # Random, as after training: the zeros and ones of new norms would hide swapped or missing tensors.
    for key in [key for key in state_dict if key.endswith(".running_mean")]:
        norm = key.removesuffix(".running_mean")
        state_dict[f"{norm}.weight"].uniform_(0.2, 0.6)
        state_dict[f"{norm}.bias"].normal_(std=0.2)
        state_dict[f"{norm}.running_mean"].normal_(std=0.2)
        state_dict[f"{norm}.running_var"].uniform_(0.5, 1.5)
    converted = Converted.from_state_dict(state_dict, source, architecture=name, sha256="")
    errors = relative_errors(converted)
    layout = "caffe" if source in CAFFE_SOURCES else "torchvision"
    return {"name": name, "layout": layout, "error": max(map(max, errors.values()))}


def parity_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each timm network."""
    lines = [[row["name"], row["layout"], f"{row['error']:.1e}"] for row in rows]
    table = tabulate(lines, ["timm's network", "layout", "largest relative error"], disable_numparse=True)
    return f"{table}\n\nAt res2 to res5, for images of 224×224 and 97×131, in float64, with random weights and norms."
