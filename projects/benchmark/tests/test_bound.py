import numpy as np
import pytest

from ..bound import Bound, least_seconds
from ..layers import Layer


def test_each_layer_takes_the_longer_of_its_two_times() -> None:
    layers = [Layer(moved=100, flops=10), Layer(moved=10, flops=1000)]
    seconds = least_seconds(layers, copied=np.array([10.0, 20.0]), computed=np.array([100.0, 50.0]))
    assert seconds == pytest.approx([100 / 10 + 1000 / 100, 100 / 20 + 1000 / 50])


def test_the_bound_uses_the_speed_of_each_round(make_case) -> None:
    bound = Bound(make_case())
    # One second for 512 MiB read and written, and one for 256 x 256 x 9 multiply-adds at 64 x 64 positions.
    once = bound.seconds({"copy": np.array([1.0]), "convolution": np.array([1.0])})
    operations = 2 * 256 * 256 * 9 * 64 * 64
    expected = sum(max(layer.moved / 2**29, layer.flops / operations) for layer in bound.layers)
    assert once == pytest.approx([expected])
    twice = bound.seconds({"copy": np.array([1.0, 2.0]), "convolution": np.array([1.0, 2.0])})
    assert twice == pytest.approx([expected, 2 * expected])


def test_the_bound_counts_the_layers_of_an_se_resnet(make_case) -> None:
    """20 convolutions, two poolings, FPN's eight, and two SE layers in each of the eight blocks."""
    assert len(Bound(make_case()).layers) == 20 + 2 + 8 + 8 * 2
