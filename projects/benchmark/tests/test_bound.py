import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import nn

from se_detection.modeling.complexity import multiply_adds

from ..bound import Bound, Layer, count_layers
from ..networks import build_network


def test_each_layer_takes_the_longer_of_its_two_times_in_each_round(make_case) -> None:
    bound = Bound(make_case())
    # 20 convolutions, two poolings, FPN's eight, and two SE layers in each of the eight blocks.
    assert len(bound.layers) == 20 + 2 + 8 + 8 * 2
    # One second for 2 MiB read and written, for 16 x 16 x 9 multiply-adds at 32 x 32 positions, and for 64 x 64 x 64.
    assert bound.work == {"copy": 2**21, "convolution": 2 * 16 * 16 * 9 * 32 * 32, "product": 2 * 64**3}
    times = {"copy": np.array([1.0, 2.0]), "convolution": np.array([1.0, 2.0]), "product": np.array([9.0, 9.0])}
    once = sum(max(layer.moved / 2**21, layer.flops / bound.work["convolution"]) for layer in bound.layers)
    assert bound.seconds(times) == pytest.approx([once, 2 * once])
    bound.layers = [Layer(moved=100, flops=10), Layer(moved=10, flops=1000)]
    bound.work = {"copy": 10, "convolution": 100, "product": 100}
    times = {"copy": np.array([1.0, 0.5]), "convolution": np.array([1.0, 2.0]), "product": np.array([2.0, 1.0])}
    # The faster of the two is the convolution in the first round, and the product in the second.
    assert bound.seconds(times) == pytest.approx([100 / 10 + 1000 / 100, 100 / 20 + 1000 / 100])


def test_counts_of_a_small_network() -> None:
    conv, fc = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.Linear(8, 5)
    image = torch.zeros(2, 3, 10, 12)

    def run() -> None:
        with torch.no_grad():
            fc(F.max_pool2d(F.relu(conv(image)), 2).mean(dim=(2, 3)))

    maps, pooled = 2 * 8 * 5 * 6, 2 * 8 * 2 * 3
    assert count_layers(conv, run) == [
        Layer(4 * (2 * 3 * 10 * 12 + 8 * 27 + 8 + maps), 2 * maps * 27),
        Layer(4 * (maps + pooled), 0),
        Layer(4 * (2 * 8 + 8 * 5 + 5 + 2 * 5), 2 * 2 * 8 * 5),
    ]


def test_half_precision_moves_half_the_bytes() -> None:
    conv = nn.Conv2d(16, 16, 1, bias=False)

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            conv(torch.zeros(1, 16, 8, 8))

    assert count_layers(conv, run) == [Layer(2 * (2 * 16 * 64 + 16 * 16), 2 * 16 * 16 * 64)]


def test_backward_counts_as_two_more_convolutions() -> None:
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    image = torch.zeros(1, 16, 8, 8, requires_grad=True)
    forward, backward = count_layers(conv, lambda: conv(image).sum().backward())
    assert backward.flops == 2 * forward.flops == 2 * 2 * 16 * 32 * 9 * 64
    # The output's gradient, the input and the weight are read; the gradients of the latter two are written.
    assert backward.moved == 4 * (32 * 64 + 2 * 16 * 64 + 2 * 16 * 32 * 9)


@pytest.mark.parametrize(
    "block",
    [BasicBlock(8, 8, norm=""), BottleneckBlock(8, 8, bottleneck_channels=8, norm="")],
    ids=["basic", "bottleneck"],
)
def test_a_blocks_last_convolution_reads_the_shortcut(block) -> None:
    image = torch.zeros(1, 8, 16, 16)
    with torch.no_grad():
        layers = count_layers(block, lambda: block(image))
    maps = 4 * image.numel()
    weights = [4 * parameter.numel() for name, parameter in block.named_parameters() if name.endswith("weight")]
    *before, last = [layer.moved for layer in layers]
    assert before == [2 * maps + weight for weight in weights[:-1]]
    assert last == 3 * maps + weights[-1]
    assert not any(module._forward_hooks for module in block.modules())


def test_operations_equal_fvcores(make_case) -> None:
    """fvcore counts multiply-adds from a trace."""
    network = build_network("se", make_case())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        layers = count_layers(network, lambda: network(image))
    assert sum(layer.flops for layer in layers) == 2 * multiply_adds(network, image)[""]
