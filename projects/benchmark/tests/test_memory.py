import pytest
import torch
from torch import nn

from ..memory import peak_bytes
from ..workload import Training

SIDE = 512
MAP = 4 * SIDE * SIDE


class Chain:
    """Keeps two maps between passes, and allocates `added` more at a time."""

    def __init__(self, added: int) -> None:
        self.kept = [torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)]
        self.added = added

    def tensors(self):
        # A view takes no memory.
        return [*self.kept, self.kept[0][:1]]

    def __call__(self) -> None:
        for _ in range(3):
            [torch.ones(SIDE, SIDE) for _ in range(self.added)]


@pytest.mark.parametrize("added", [1, 4])
def test_peak_of_allocations(added) -> None:
    assert peak_bytes(Chain(added), "cpu") == pytest.approx((2 + added) * MAP, rel=0.01)


class Deep(nn.Module):
    """A chain of sigmoids; the backward of each needs its output."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3, 256, 256))
        self.depth = depth

    def forward(self, x):
        x = x * self.weight
        for _ in range(self.depth):
            x = x.sigmoid()
        return {"out": x}


def test_training_memory_includes_saved_tensors_and_optimizer_state(make_case) -> None:
    def peak(depth: int) -> int:
        workload = Training(Deep(depth), make_case(mode="train", size=256))
        workload()
        return peak_bytes(workload, "cpu")

    map_bytes = 4 * 3 * 256 * 256
    assert peak(9) - peak(4) == pytest.approx(5 * map_bytes, rel=0.01)
    # The weight and its momentum.
    workload = Training(Deep(1), make_case(mode="train", size=256))
    workload()
    assert sum(tensor.nbytes for tensor in workload.tensors()) == 2 * map_bytes
