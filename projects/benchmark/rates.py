"""What the machine can do at best: a large copy, and a large convolution."""

import torch
import torch.nn.functional as F

from .case import DTYPES

# More than a CPU's caches hold.
COPIED = 256 * 2**20
# Images, channels, and the maps' side: some hundredths of a second on two CPU cores, about a thousandth on a GPU.
CONVOLUTION = {"cpu": (1, 256, 64), "cuda": (8, 1024, 64)}


class Copy:
    """Copies a large tensor; `work` is the bytes that are read and written."""

    work = 2 * COPIED

    def __init__(self, device: str) -> None:
        self.source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)


class Convolution:
    """Convolves large maps, 3x3; `work` is its floating-point operations.

    It is a matrix product by the library, and in the number format, of the networks' convolutions. On CPUs its rate was
    seen to be 10 to 15 % higher than that of `torch.mm`, which would be no bound.
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
