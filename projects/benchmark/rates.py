"""The speed of the machine: a large copy, and a large convolution."""

import torch
import torch.nn.functional as F

from .case import DTYPES

# Bytes; larger than a CPU's caches.
COPIED = 256 * 2**20
# Images, channels, and the maps' side: some 10 ms on two CPU cores, about 1 ms on a GPU.
CONVOLUTION = {"cpu": (1, 256, 64), "cuda": (8, 1024, 64)}


class Copy:
    """Copies a large tensor; `work` is the number of bytes read and written."""

    work = 2 * COPIED

    def __init__(self, device: str) -> None:
        self.source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)


class Convolution:
    """A 3x3 convolution of large maps; `work` is its number of floating-point operations.

    It uses the library and the dtype of the networks' convolutions. On CPUs it is 10 to 15 % faster than `torch.mm`, so
    `torch.mm` would not give a lower bound.
    """

    def __init__(self, device: str, dtype: str) -> None:
        images, channels, side = CONVOLUTION[device]
        self.work = 2 * images * side**2 * channels**2 * 9
        shapes = (images, channels, side, side), (channels, channels, 3, 3)
        self.maps, self.weight = (
            torch.randn(shape, dtype=DTYPES[dtype], device=device).to(memory_format=torch.channels_last)
            for shape in shapes
        )

    def __call__(self) -> None:
        F.conv2d(self.maps, self.weight, padding=1)
