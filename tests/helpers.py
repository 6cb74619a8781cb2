"""Helpers that several tests share."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from se_detection.config.meta_device import Uninitialized
from se_detection.errors import UserError
from se_detection.modeling import se_resnet

REPOSITORY = Path(__file__).parents[1]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a Python process that imports this checkout, also if another one is installed."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **changes}


@contextmanager
def raises(code: str, *named: object) -> Iterator[None]:
    """Expects a UserError with this code, whose message names these things, such as a key, a file or a value."""
    with pytest.raises(UserError) as caught:
        yield
    assert caught.value.code == code
    assert [name for name in map(str, named) if name not in caught.value.message] == []


def randomize_norms(model: nn.Module) -> nn.Module:
    """Gives norms random values, as after training; with initial values, tests would not notice a swapped norm.

    Scales are below 1, as in trained networks. With larger ones, a deep random network amplifies rounding errors.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.data.uniform_(0.2, 0.6)
            module.running_var.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return model


@contextmanager
def fewer_blocks(blocks: tuple[int, ...] = (2, 1, 1, 2)) -> Iterator[None]:
    """Makes SE-ResNets with so many blocks in each stage; by default, res2 and res5 have blocks of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(se_resnet, "BLOCKS_PER_STAGE", dict.fromkeys(se_resnet.BLOCKS_PER_STAGE, blocks))
        yield


def with_random_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that a function makes, with random weights and norms as after training.

    Its weights are parts of one random tensor: to initialize them takes longer than many a test.
    """
    with Uninitialized():
        network = make()
    numbers = _random_numbers()
    for place, parameter in enumerate(network.parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        if parameter.numel() > len(numbers):
            numbers = numbers.repeat(1 + parameter.numel() // len(numbers))
        # Layers of the same shape get other weights.
        start = 104_729 * place % (len(numbers) - parameter.numel() + 1)
        part = numbers[start : start + parameter.numel()].view_as(parameter)
        torch.mul(part, (2 / fan_in) ** 0.5, out=parameter.data)
    return randomize_norms(network)


@cache
def _random_numbers() -> Tensor:
    return torch.randn(2**22, generator=torch.Generator().manual_seed(0))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-20)).item()
