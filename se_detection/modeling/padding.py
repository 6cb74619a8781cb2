"""What of a batch is picture and what is padding, and an SE squeeze that sees the pictures alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .squeeze_excitation import AvgMaxSqueeze

# The largest sum of float16 values is that of a whole map; counted in these units it stays within float16's range.
UNIT = 2.0**-8


class Padding:
    """The sizes of a batch's pictures, for the layers of the network that works on it; one batch at a time.

    Padding is what lies to the right of and below the last value that isn't exactly 0, as detectron2's `ImageList`
    pads what is normalised already. A border of the picture itself is 0 only where it has the pixel mean's exact
    colour: black, with a mean of 0. That is then taken for padding, in each batch alike.

    Args:
        unpadded_pool: the stem's max pool is the Caffe models', which gives one row less where their number is odd.
    """

    def __init__(self, *, unpadded_pool: bool) -> None:
        self._unpadded_pool = unpadded_pool
        self._sizes = torch.empty(0)
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    def look_at(self, images: Tensor) -> None:
        """Finds the sizes; from now on the layers are asked about this batch.

        Args:
            images: (N, 3, H, W), normalised and padded with 0.
        """
        self._masks = {}
        inside = (images != 0).any(dim=1)
        ends = []
        for dim in (2, 1):
            places = torch.arange(1, inside.shape[3 - dim] + 1, device=images.device)
            ends.append((inside.any(dim=dim) * places).amax(dim=1))
        self._sizes = torch.stack(ends, dim=1)

    def sizes(self, level: int) -> Tensor:
        """(N, 2), height and width of each picture where the network has halved the map `level` times; 1 at least."""
        sizes = self._sizes
        for halved in range(1, level + 1):
            dropped = 1 if halved == 2 and self._unpadded_pool else 0
            sizes = (sizes + 1 - dropped) // 2
        return sizes.clamp(min=1)

    def mask(self, x: Tensor, level: int) -> Tensor:
        """(N, 1, H, W) of the type of `x`: 1 in the picture, 0 in the padding.

        Args:
            x: (N, C, H, W), a map that was halved `level` times.
        """
        key = (level, x.dtype)
        if key not in self._masks:
            sizes = self.sizes(level)
            rows = torch.arange(x.shape[2], device=x.device) < sizes[:, :1]
            columns = torch.arange(x.shape[3], device=x.device) < sizes[:, 1:]
            self._masks[key] = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype)
        return self._masks[key]

    def continue_pictures(self, x: Tensor, level: int) -> Tensor:
        """A map in whose first row and column of padding stand the picture's last ones.

        Args:
            x: (N, C, H, W), a map that was halved `level` times, with 0 in the padding.
        """
        sizes = self.sizes(level)
        for dim in (2, 3):
            end = sizes[:, dim - 2].reshape(-1, 1, 1, 1)
            shape = [1, 1, 1, 1]
            shape[dim] = -1
            beyond = torch.arange(x.shape[dim], device=x.device).reshape(shape) == end
            index = (end - 1).expand(*(1 if place == dim else length for place, length in enumerate(x.shape)))
            x = torch.addcmul(x, x.gather(dim, index), beyond.to(x.dtype))
        return x


class PictureSqueeze(nn.Module):
    """Another squeeze's average or maximum, of the pictures without their padding.

    Args:
        squeeze: `nn.AdaptiveAvgPool2d(1)`, `nn.AdaptiveMaxPool2d(1)` or :class:`AvgMaxSqueeze`.
        padding: of the batch.
        level: how often the map was halved.
    """

    def __init__(self, squeeze: nn.Module, padding: Padding, level: int) -> None:
        super().__init__()
        self.average = isinstance(squeeze, nn.AdaptiveAvgPool2d | AvgMaxSqueeze)
        self.maximum = isinstance(squeeze, nn.AdaptiveMaxPool2d | AvgMaxSqueeze)
        self.padding = padding
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 1, 1), or to (N, 2C, 1, 1) where it is average and maximum."""
        mask = self.padding.mask(x, self.level)
        squeezed = []
        if self.average:
            # A product with the mask would be a map more to write; as a matrix product it is one pass.
            total = torch.bmm(x.flatten(2), (mask * UNIT).flatten(2).transpose(1, 2))
            pixels = self.padding.sizes(self.level).prod(dim=1)[:, None, None]
            squeezed.append((total / (UNIT * pixels)).to(x.dtype)[..., None])
        if self.maximum:
            squeezed.append(F.adaptive_max_pool2d(x.masked_fill(mask == 0, -torch.inf), 1))
        return squeezed[0] if len(squeezed) == 1 else torch.cat(squeezed, dim=1)
