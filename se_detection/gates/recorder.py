"""The SE gates of a detector: by the paper's names, recorded during inference, and held constant."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..modeling.squeeze_excitation import DoubledHardsigmoid, DoubledSigmoid, SqueezeExcitation
from ..modeling.timm_backbone import TimmBackbone

Array = NDArray[np.float64]
Gates = Mapping[str, SqueezeExcitation]

IN_STAGE = re.compile(r"(?:^|\.)res(\d)\.(\d+)\.se$")
# `MODEL.SE.FPN` and `MODEL.SE.ROI`; the pooler of a C4 detector has no prefix.
ON_LEVEL = re.compile(r"(?:^|\.)fpn_output(\d)\.se$")
ON_REGIONS = re.compile(r"(?:^|[._])(?:(box|mask|keypoint)_)?pooler\.se$")
# A gate this close to a limit is saturated.
NEAR = 0.05
LIMITS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    DoubledSigmoid: (0.0, 2.0),
    DoubledHardsigmoid: (0.0, 2.0),
    nn.Tanh: (-1.0, 1.0),
    nn.ReLU: (0.0, float("inf")),
}


@dataclass(frozen=True)
class GateValues:
    """A block's gate for one image: (channels,) each.

    `mean` is the mean over positions if the block has no squeeze, and over regions in the heads of a C4 detector. `low`
    and `high` are the shares of these values within 0.05 of the gate's limits (0 and 1 for a sigmoid).
    """

    mean: Array
    low: Array
    high: Array


def se_gates(model: nn.Module) -> dict[str, SqueezeExcitation]:
    """A model's SE blocks by the paper's names, `SE_stage_block`: the stage as in `res2`, blocks counted from 1.

    SE that was inserted into a network of timm is counted in each stage, where stage 1 is the stem; such a block may
    have several. timm's own SE modules are not this project's blocks, and are not included. SE on FPN levels is
    `SE_FPN_2` to `SE_FPN_5`, and SE on the features of regions `SE_ROI_box`, `SE_ROI_mask` and `SE_ROI_keypoint`.
    """
    inserted = [_inserted_gates(module) for module in model.modules() if isinstance(module, TimmBackbone)]
    gates: dict[str, SqueezeExcitation] = inserted[0] if inserted else {}
    for path, module in model.named_modules():
        if not isinstance(module, SqueezeExcitation):
            continue
        if match := IN_STAGE.search(path):
            gates[f"SE_{match[1]}_{int(match[2]) + 1}"] = module
        elif match := ON_LEVEL.search(path):
            gates[f"SE_FPN_{match[1]}"] = module
        elif match := ON_REGIONS.search(path):
            gates[f"SE_ROI_{match[1] or 'box'}"] = module
    return gates


def _inserted_gates(backbone: TimmBackbone) -> dict[str, SqueezeExcitation]:
    gates: dict[str, SqueezeExcitation] = {}
    for number, names in enumerate(backbone.parts.values(), start=1):
        modules = map(backbone.network.get_submodule, names)
        inserted = [module for module in modules if isinstance(module, SqueezeExcitation)]
        gates |= {f"SE_{number}_{place}": gate for place, gate in enumerate(inserted, start=1)}
    return gates


def stage_of(name: str) -> str:
    """`SE_2` of `SE_2_3`."""
    return name.rsplit("_", 1)[0]


@contextmanager
def recorded_gates(gates: Gates) -> Iterator[Callable[[], dict[str, GateValues]]]:
    """Within the context, records the gates during the model's forward passes.

    Yields:
        A function that returns the gates recorded since its last call; gates that were not computed are omitted.
    """
    recorded: dict[str, list[Tensor]] = {}

    def keep(name: str, activation: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.numel():
            recorded.setdefault(name, []).append(output.detach().double().transpose(0, 1).flatten(1))

    def take() -> dict[str, GateValues]:
        taken = {name: _summary(gates[name], values) for name, values in recorded.items()}
        recorded.clear()
        return taken

    with ExitStack() as hooks:
        for name, gate in gates.items():
            # Hook the activation, not the block: residual blocks call `gate`, not `forward`.
            hooks.callback(gate.activation.register_forward_hook(partial(keep, name)).remove)
        yield take


def _summary(gate: SqueezeExcitation, values: list[Tensor]) -> GateValues:
    """Summarizes (channels, values) tensors."""
    joined = torch.cat(values, dim=1)
    low, high = LIMITS[type(gate.activation)]
    parts = joined, (joined <= low + NEAR).double(), (joined >= high - NEAR).double()
    return GateValues(*(part.mean(dim=1).cpu().numpy() for part in parts))


@contextmanager
def constant_gates(gates: Gates, means: Mapping[str, Array]) -> Iterator[None]:
    """Within the context, the gates in `means` are constant; the others are unchanged.

    Args:
        gates: from :func:`se_gates`.
        means: (channels,) for each constant gate.
    """
    with ExitStack() as hooks:
        for name, mean in means.items():
            hook = partial(_replace, torch.from_numpy(mean))
            hooks.callback(gates[name].activation.register_forward_hook(hook).remove)
        yield


def _replace(mean: Tensor, activation: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return mean.to(output).reshape(1, -1, 1, 1).expand_as(output)
