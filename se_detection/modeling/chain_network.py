"""Networks of torchvision and pytorchcv as backbones: those whose modules run one after another, as in VGG or ResNet.

timm describes the maps of its networks; these libraries don't. One forward pass on the meta device shows which modules
form the chain, and the stride and the channels of each output.
"""

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from .network_names import CONVERTS_INPUT, library_of

# Of the image that shows the chain; the last pool of pytorchcv's classifiers needs this size.
SIZE = 224


def create_classifier(name: str, options: Mapping[str, Any], *, weights: Any = None) -> nn.Module:
    """A network of torchvision or pytorchcv by name, as in `MODEL.TIMM.NAME`.

    Args:
        options: of the library's function.
        weights: torchvision's entry for them, or a folder for the file that pytorchcv downloads; by default random.
    """
    library, network = library_of(name)
    architecture = network.split(".")[0]
    if library == "torchvision":
        from torchvision.models import get_model

        # With the classifiers in the middle, which its files have; without weights, torchvision warns of its default.
        if architecture in CONVERTS_INPUT:
            options = {"aux_logits": True, "init_weights": weights is None, **options}
        return get_model(architecture, weights=weights, **options)
    from pytorchcv.model_provider import get_model as get_pytorchcv_model

    return get_pytorchcv_model(architecture, **({"pretrained": True, "root": weights} if weights else {}), **options)


class ChainNetwork(nn.Module):
    """Runs modules of a network one after another, and returns the outputs of some of them; it deletes the others.

    Args:
        network: they keep their names, after `body.`.
        steps: the names of the modules, in order.
        maps: the names of those whose outputs are returned.
    """

    def __init__(self, network: nn.Module, steps: Sequence[str], maps: Sequence[str]) -> None:
        super().__init__()
        self.body = network
        self.steps = tuple(steps)[: list(steps).index(maps[-1]) + 1]
        self.maps = frozenset(maps)
        for name in [name for name, _ in network.named_modules() if name]:
            parent, _, own = name.rpartition(".")
            # Parts of a step are used, and the modules that contain one are kept.
            if any(f"{name}.".startswith(f"{step}.") or f"{step}.".startswith(f"{name}.") for step in self.steps):
                continue
            if any(f"{step}.".startswith(f"{parent}.") for step in self.steps) or not parent:
                delattr(network.get_submodule(parent), own)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the maps, the finest first."""
        found = []
        for name in self.steps:
            x = self.body.get_submodule(name)(x)
            if name in self.maps:
                found.append(x)
        return found


class _Call(NamedTuple):
    """The input and the output of a module: tensors and how often they had been changed in place by then."""

    input: tuple[Tensor, int]
    output: tuple[Tensor, int]


def describe_chain(classifier: nn.Module) -> list[dict[str, Any]]:
    """The chain of modules in a classifier, in the form of timm's `feature_info`.

    Args:
        classifier: on the meta device.

    Returns:
        `module`, `reduction` (the nearest power of 2) and `num_chs` of each step that gives a map.
    """
    try:
        calls = _record_calls(classifier)
    except Exception as error:  # of any class: a network may need another size
        reason = one_line(error)
        raise UserError(
            "model.no_maps",
            f"MODEL.TIMM.NAME: {type(classifier).__name__} fails on an image of {SIZE}x{SIZE} ({reason}); use another "
            "network",
        ) from error
    outputs = {name: calls[name].output[0].shape for name in _steps("", classifier, calls)}
    return [
        {"module": name, "reduction": 2 ** round(log2(SIZE / shape[2])), "num_chs": shape[1]}
        for name, shape in outputs.items()
        if len(shape) == 4
    ]


def _record_calls(classifier: nn.Module) -> dict[str, _Call]:
    inputs: dict[str, tuple[Tensor, int]] = {}
    calls: dict[str, _Call] = {}
    repeated = set()

    def before(name: str, given: tuple[Any, ...]) -> None:
        if name in inputs:
            repeated.add(name)
        if given and isinstance(given[0], Tensor):
            inputs[name] = given[0], given[0]._version

    def after(name: str, output: Any) -> None:
        if name in inputs and isinstance(output, Tensor):
            calls[name] = _Call(inputs[name], (output, output._version))

    hooks = []
    for name, module in classifier.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, given, name=name: before(name, given)))
        hooks.append(module.register_forward_hook(lambda module, given, output, name=name: after(name, output)))
    training = classifier.training
    try:
        with torch.no_grad():
            classifier.eval()(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    finally:
        classifier.train(training)
        for hook in hooks:
            hook.remove()
    return {name: call for name, call in calls.items() if name not in repeated}


def _steps(name: str, module: nn.Module, calls: Mapping[str, _Call]) -> list[str]:
    """The modules that a module runs one after another, if it has several strides; otherwise itself.

    Each gets exactly what the one before it returned: not another tensor, and not the same one changed in place.
    """
    steps, last = [], calls[name].input
    for child, part in module.named_children():
        path = f"{name}.{child}".removeprefix(".")
        if isinstance(part, nn.AdaptiveAvgPool2d):
            break  # of the classifier
        if path in calls and _same(calls[path].input, last):
            inner = calls[path]
            several = inner.output[0].dim() == 4 and inner.input[0].shape[-1] > 2 * inner.output[0].shape[-1]
            steps += _steps(path, part, calls) if several else [path]
            last = inner.output
    # The last layers of the whole network are not needed.
    return steps if not name or _same(last, calls[name].output) else [name]


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    return one[0] is other[0] and one[1] == other[1]
