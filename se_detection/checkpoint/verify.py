"""Compares a converted backbone with timm's network of the same weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config.se_config import STAGES
from ..errors import UserError
from .assumptions import WeightsAssumptions
from .convert import CAFFE_SOURCES
from .converted import Converted

SIZES = ((224, 224), (97, 131))
TOLERANCE = 1e-5


def relative_errors(converted: Converted, sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, list[float]]:
    """The maximum difference from timm's network at each stage, divided by the maximum value there.

    The network is the one that the user named; if the tensors alone say which it is, that one.
    Both run in float64 on the same random images, so rounding errors are negligible.

    Args:
        sizes: (height, width) of the images; the two layouts differ only at sizes that are not multiples of 32.

    Returns:
        For each of `res2` to `res5`, one error per size.

    Raises:
        UserError: timm has no such network.
    """
    theirs = _timm_network(converted).eval().double()
    ours = converted.build()
    ours.load_state_dict({key: tensor for key, tensor in converted.weights.items() if not key.startswith("linear.")})
    ours.eval().double()
    expected: dict[str, Tensor] = {}
    for number, stage in enumerate(STAGES, start=1):
        theirs.get_submodule(f"layer{number}").register_forward_hook(
            lambda module, args, output, stage=stage: expected.update({stage: output})
        )
    errors: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for size in sizes:
        images = torch.randn(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            theirs(images)
            outputs = ours(images)
        for stage, output in outputs.items():
            difference = (output - expected[stage]).abs().max() / expected[stage].abs().max()
            errors[stage].append(difference.item())
    return errors


def _timm_network(converted: Converted) -> nn.Module:
    """timm's network with the original weights, without its classifier."""
    import timm

    source, name = converted.assumptions.source, network_name(converted)
    if source in ("mmpretrain", "moskomule", "pytorchcv") or not timm.is_model(name):
        raise UserError("weights.not_verifiable", f"verification needs timm's network, and timm has no {source} {name}")
    network: nn.Module = timm.create_model(name, num_classes=0)
    classifier = ("fc.", "last_linear.")
    network.load_state_dict({key: value for key, value in converted.original.items() if not key.startswith(classifier)})
    return network


def network_name(converted: Converted) -> str:
    """timm's name of the network to compare with: the user's, or the one that follows from the tensors."""
    return converted.architecture or timm_name(converted.assumptions)


def timm_name(assumptions: WeightsAssumptions) -> str:
    """timm's name of a network; timm's layers have the same names as torchvision's and Cadene's."""
    if assumptions.depth == 154:
        return "legacy_senet154"
    if assumptions.num_groups == 1 and assumptions.width_per_group == 128:
        return f"wide_resnet{assumptions.depth}_2"
    prefix = ("legacy_" if assumptions.source in CAFFE_SOURCES else "") + ("se" if assumptions.has_se else "")
    if assumptions.num_groups == 1:
        return f"{prefix}resnet{assumptions.depth}"
    return f"{prefix}resnext{assumptions.depth}_{assumptions.num_groups}x{assumptions.width_per_group}d"
