"""Statistics of a block's gate over many images, in constant memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_whole
from .recorder import Array, GateValues

# Thresholds of the findings: of `class_share`, `saturated` and `relative_spread`.
CLASS_DEPENDENT, SATURATED, NEARLY_CONSTANT = 0.1, 0.25, 0.05
FIELDS = ("images", "mean", "std", "together", "low", "high")
# Eigenvalues below this share of the largest one are rounding errors: the matrix has integer counts.
SINGULAR = 1e-9


class BlockStatistics:
    """Mean and spread of a block's gate over the images of each class and, in the last row, over all images.

    An image counts for each class in it (images in the paper's Sec. 7.2 have one class). The sums use Welford's method.

    Args:
        channels: number of the gate's channels.
        classes: number of classes.

    Attributes:
        images: (classes + 1,), number of images.
        mean: (classes + 1, channels).
        together: (classes, classes), number of images with both classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        self.images: NDArray[np.int64] = np.zeros(classes + 1, dtype=np.int64)
        self.mean: Array = np.zeros((classes + 1, channels))
        self.together: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)
        self._squares: Array = np.zeros((classes + 1, channels))
        self._low: Array = np.zeros(channels)
        self._high: Array = np.zeros(channels)

    def add(self, values: GateValues, classes: Sequence[int]) -> None:
        """Adds the gate of one image with these classes."""
        rows = [*classes, -1]
        self.images[rows] += 1
        difference = values.mean - self.mean[rows]
        self.mean[rows] += difference / self.images[rows, None]
        self._squares[rows] += difference * (values.mean - self.mean[rows])
        self.together[np.ix_(classes, classes)] += 1
        self._low += values.low
        self._high += values.high

    @property
    def std(self) -> Array:
        """Standard deviation over images, with divisor n: (classes + 1, channels)."""
        return np.sqrt(self._squares / np.maximum(self.images, 1)[:, None])

    @property
    def low(self) -> Array:
        """Share of each channel's gates near the lower limit: (channels,)."""
        return self._low / max(self.images[-1], 1)

    @property
    def high(self) -> Array:
        """Share of each channel's gates near the upper limit: (channels,)."""
        return self._high / max(self.images[-1], 1)

    @property
    def saturated(self) -> float:
        """Share of all gates near one of the limits."""
        return float((self.low + self.high).mean())

    @property
    def relative_spread(self) -> float:
        """Spread over all images, relative to the gate; both are root mean squares over channels."""
        size = float((self.mean[-1] ** 2).sum())
        return float((self.std[-1] ** 2).sum() / size) ** 0.5 if size else 0.0

    @property
    def class_share(self) -> float | None:
        """Share of the variance between images that is explained by their classes, from 0 to 1.

        This is the adjusted R² of a regression of the gates, over all channels, on the presence of classes. With one
        class in each image it is the variance between classes over the total variance. None if it is undefined: too few
        images, the same classes in all images, or gates that don't vary.
        """
        images, present = int(self.images[-1]), self.images[:-1]
        total = float(self._squares[-1].sum())
        if images == 0 or total == 0:
            return None
        values, vectors = np.linalg.eigh(self.together - np.outer(present, present) / images)
        used = values > SINGULAR * max(values.max(initial=0.0), 1.0)
        freedom = images - 1 - int(used.sum())
        if not used.any() or freedom < 1:
            return None
        moments = present[:, None] * (self.mean[:-1] - self.mean[-1])
        explained = float(((vectors[:, used].T @ moments) ** 2 / values[used, None]).sum())
        return max(0.0, 1 - (1 - explained / total) * (images - 1) / freedom)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "BlockStatistics":
        """From the attributes in `FIELDS`."""
        images, mean = arrays["images"], arrays["mean"]
        block = cls(mean.shape[1], len(images) - 1)
        block.images, block.mean, block.together = images, mean, arrays["together"]
        block._squares = arrays["std"] ** 2 * images[:, None]
        block._low, block._high = (arrays[field] * images[-1] for field in ("low", "high"))
        return block


def save_statistics(blocks: Mapping[str, BlockStatistics], classes: Sequence[str], seen: int, path: Path) -> None:
    """Writes an npz file: `<block>/<field>` arrays, `blocks`, `classes`, and `seen`, the number of images."""
    arrays = {f"{name}/{field}": getattr(block, field) for name, block in blocks.items() for field in FIELDS}
    arrays |= {"blocks": np.array(list(blocks)), "classes": np.array(classes), "seen": np.array(seen)}
    write_whole(path, lambda file: np.savez(file, **arrays))


def load_statistics(path: Path) -> tuple[dict[str, BlockStatistics], int]:
    """Reads the file of :func:`save_statistics`: the blocks, and the number of images seen."""
    with np.load(path, allow_pickle=False) as file:
        blocks = {
            str(name): BlockStatistics.from_arrays({field: file[f"{name}/{field}"] for field in FIELDS})
            for name in file["blocks"]
        }
        return blocks, int(file["seen"])
