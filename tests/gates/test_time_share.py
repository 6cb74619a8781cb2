import time

import pytest
import torch
from torch import nn

from se_detection.gates.time_share import measure_gate_time


class Slow(nn.Identity):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


class Gate(nn.Module):
    """Stands in for an SE block: its parts sleep instead of computing."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.squeeze = Slow(seconds / 2)
        self.fc = Slow(seconds / 2)
        self.activation = nn.Identity()

    def forward(self, x):
        return self.activation(self.fc(self.squeeze(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.short, self.twice, self.rest = Gate(0.004), Gate(0.008), Slow(0.02)

    def forward(self, x):
        return self.rest(self.twice(self.twice(self.short(x))))


def test_shares_of_known_times() -> None:
    model = Model()
    measured = measure_gate_time(model, {"short": model.short, "twice": model.twice}, [torch.zeros(1)] * 3)
    assert (measured["device"], measured["images"]) == ("cpu", 3)
    assert measured["seconds_per_image"] == pytest.approx(0.04, rel=0.3)
    assert measured["jitter"] >= 0
    # Sleeps last longer on a busy machine.
    assert measured["share"]["short"] == pytest.approx(0.1, rel=0.4)
    assert measured["share"]["twice"] == pytest.approx(0.4, rel=0.4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
