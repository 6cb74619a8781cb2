"""timm's networks: creation by name, the places of their maps, the names of their tensors, and their parts.

Networks of torchvision and pytorchcv are created, described and named in the same way (:mod:`.chain_network`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor, nn

from ..config.se_config import STAGES
from ..config.timm_config import TimmConfig
from ..errors import UserError, one_line
from .chain_network import ChainNetwork, create_classifier, describe_chain
from .network_names import library_of

STEM = "stem"
STRIDES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}
# timm's wrappers of a network for features put one of these before its names, or join the first two parts of a name.
WRAPPERS = ("body.", "model.")


def create_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A classifier by name, with random weights.

    Raises:
        UserError: it can't be built with these options.
    """
    with _explained(name, options):
        if library_of(name)[0] != "timm":
            return create_classifier(name, options)
        import timm

        return timm.create_model(name, pretrained=False, **options)


def create_features(
    name: str, options: Mapping[str, Any], info: Sequence[Mapping[str, Any]], indices: Sequence[int]
) -> nn.Module:
    """A network that returns maps, with random weights.

    Args:
        info: of its classifier, from :func:`feature_info`.
        indices: of the maps, in `info`.

    Raises:
        UserError: it can't be built with these options.
    """
    if library_of(name)[0] != "timm":
        steps = [entry["module"] for entry in info]
        return ChainNetwork(create_network(name, options), steps, [steps[index] for index in indices])
    return create_network(name, {**options, "features_only": True, "out_indices": indices})


@contextmanager
def _explained(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # networks raise many classes for what they can't be
        given = {key: value for key, value in options.items() if key not in ("features_only", "out_indices")}
        shown = ", ".join(f"{key}={value}" for key, value in given.items()) or "features_only"
        reason = one_line(error)
        raise UserError(
            "config.not_buildable",
            f"MODEL.TIMM: {library_of(name)[0]} can't build {name} with {shown} ({reason}); change these values, or "
            "the network",
        ) from error


def feature_info(classifier: nn.Module, name: str) -> list[dict[str, Any]]:
    """The maps of a network: `module`, `reduction` and `num_chs` of each.

    Args:
        classifier: on the meta device.
    """
    if library_of(name)[0] != "timm":
        return describe_chain(classifier)
    info: Any = getattr(classifier, "feature_info", None)
    if not info:
        raise UserError("model.no_maps", f"MODEL.TIMM.NAME: timm describes no maps of {name}; use another network")
    return list(getattr(info, "info", info))


def map_indices(info: Sequence[Mapping[str, Any]], out_features: Sequence[str], name: str) -> list[int]:
    """The index of the last map of the stride of each feature."""
    last = {STRIDES.get(entry["reduction"]): index for index, entry in enumerate(info)}
    if missing := [feature for feature in out_features if feature not in last]:
        strides = sorted({entry["reduction"] for entry in info})
        raise UserError(
            "model.no_maps",
            f"MODEL.TIMM.OUT_FEATURES: {name} has no {', '.join(missing)}: its maps have the strides "
            f"{', '.join(map(str, strides))}, and res2 to res5 are 4, 8, 16 and 32; use another network",
        )
    return [last[feature] for feature in out_features]


def check_drop(network: nn.Module, config: TimmConfig) -> None:
    """Some networks take a rate and ignore it."""
    from timm.layers import DropBlock2d, DropPath

    for key, rate, kind in (
        ("DROP_PATH", config.drop_path, DropPath),
        ("DROP_BLOCK", config.drop_block, DropBlock2d),
    ):
        if rate and not any(isinstance(module, kind) for module in network.modules()):
            raise UserError("config.bad_value", f"MODEL.TIMM.{key}: {config.name} ignores it; set it to 0")


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


def _own_names(name: str) -> list[str]:
    """The names that a module or tensor of a classifier may have in timm's network for features."""
    return [name, *(wrapper + name for wrapper in WRAPPERS), name.replace(".", "_", 1)]


def find_timm_names(network: nn.Module, classifier: nn.Module) -> dict[str, str]:
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    found = {}
    for theirs, tensor in classifier.state_dict().items():
        for own in _own_names(theirs):
            if shapes.get(own) == tensor.shape:
                found[own] = theirs
    return found


def find_parts(
    network: nn.Module, info: Sequence[Mapping[str, Any]], out_features: Sequence[str]
) -> dict[str, list[str]]:
    """The modules of the stem and of res2 to res5, by name; empty if these run at the same time (HRNet).

    A part ends with the module of timm's last map of its stride. The stem ends with the last map of a stride below 4,
    and without such a map, before the module of res2. timm registers modules in the order of their use.
    """
    names = [name for name, _ in network.named_modules() if name]
    ends: dict[str, int] = {}
    # TResNet describes a map that it does not have.
    for entry in filter(lambda entry: entry["module"], info):
        stage = STRIDES.get(entry["reduction"], STEM)
        if entry["reduction"] > 4 * 2 ** STAGES.index(out_features[-1]):
            break
        module = next((own for own in _own_names(entry["module"]) if own in names), None)
        if module is None:
            return {}
        if stage != STEM and STEM not in ends:
            ends[STEM] = names.index(module) - 1
        ends[stage] = max(index for index, name in enumerate(names) if f"{name}.".startswith(f"{module}."))
        # The norm and the activation of a convolution may follow it.
        for name in names[ends[stage] + 1 :]:
            follower = network.get_submodule(name)
            if not isinstance(follower, nn.BatchNorm2d) and any(True for _ in follower.parameters()):
                break
            ends[stage] += 1
    if list(ends.values()) != sorted(ends.values()):
        return {}
    parts, start = {}, 0
    for stage, end in ends.items():
        parts[stage] = names[start : end + 1]
        start = end + 1
    return parts
