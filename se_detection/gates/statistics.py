"""What the gates of a block are like over many images, in memory that does not grow with their number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_whole
from .recorder import Array, GateValues

# From here on a block is named in a finding; see `class_share`, `saturated`, `relative_spread`.
TELLS_APART, SATURATED, HARDLY_VARIES = 0.1, 0.25, 0.05
FIELDS = ("images", "mean", "std", "together", "low", "high")
# Of the largest eigenvalue; presence of classes is counted in whole numbers, and only rounding lies below.
SINGULAR = 1e-9


class BlockStatistics:
    """Mean and spread of a block's gate over images: of each class, and last of all images.

    An image counts for each class in it, as single-label images do in the paper's Sec. 7.2. The sums are Welford's.

    Args:
        channels: of the gate.
        classes: how many.

    Attributes:
        images: (classes + 1,), how many there were.
        mean: (classes + 1, channels).
        together: (classes, classes), in how many images two classes are.
    """

    def __init__(self, channels: int, classes: int) -> None:
        self.images: NDArray[np.int64] = np.zeros(classes + 1, dtype=np.int64)
        self.mean: Array = np.zeros((classes + 1, channels))
        self.together: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)
        self._squares: Array = np.zeros((classes + 1, channels))
        self._low: Array = np.zeros(channels)
        self._high: Array = np.zeros(channels)

    def add(self, values: GateValues, classes: Sequence[int]) -> None:
        """One image's gate, and the classes in it."""
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
        """The spread over images, with n for their number: (classes + 1, channels)."""
        return np.sqrt(self._squares / np.maximum(self.images, 1)[:, None])

    @property
    def low(self) -> Array:
        """The part of each channel's gates that is near its lower limit: (channels,)."""
        return self._low / max(self.images[-1], 1)

    @property
    def high(self) -> Array:
        """The same of its upper limit."""
        return self._high / max(self.images[-1], 1)

    @property
    def saturated(self) -> float:
        """The part of all gates that is near one of the limits."""
        return float((self.low + self.high).mean())

    @property
    def relative_spread(self) -> float:
        """The spread over all images, relative to the gate itself; both are root mean squares over channels."""
        size = float((self.mean[-1] ** 2).sum())
        return float((self.std[-1] ** 2).sum() / size) ** 0.5 if size else 0.0

    @property
    def class_share(self) -> float | None:
        """How much of the variance between images the classes in them explain, from 0 to 1.

        Adjusted R² of the gates, all channels together, regressed on which classes are there. With one class in each
        image, that is the variance between classes over the whole. None where that can't be told: too few images, the
        same classes in all of them, or gates that don't vary.
        """
        images, present = int(self.images[-1]), self.images[:-1]
        total = float(self._squares[-1].sum())
        if images == 0 or total == 0:
            return None
        values, vectors = np.linalg.eigh(self.together - np.outer(present, present) / images)
        used = values > SINGULAR * max(values.max(initial=0.0), 1.0)
        left = images - 1 - int(used.sum())
        if not used.any() or left < 1:
            return None
        moments = present[:, None] * (self.mean[:-1] - self.mean[-1])
        explained = float(((vectors[:, used].T @ moments) ** 2 / values[used, None]).sum())
        return max(0.0, 1 - (1 - explained / total) * (images - 1) / left)

    def to_arrays(self) -> dict[str, Any]:
        """Everything, by the names of `FIELDS`."""
        return {field: getattr(self, field) for field in FIELDS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "BlockStatistics":
        """The opposite of :meth:`to_arrays`."""
        images, mean = arrays["images"], arrays["mean"]
        block = cls(mean.shape[1], len(images) - 1)
        block.images, block.mean, block.together = images, mean, arrays["together"]
        block._squares = arrays["std"] ** 2 * images[:, None]
        block._low, block._high = (arrays[field] * images[-1] for field in ("low", "high"))
        return block


def save_statistics(blocks: Mapping[str, BlockStatistics], classes: Sequence[str], seen: int, path: Path) -> None:
    """Writes `<block>/<field>` arrays, `blocks`, `classes` and how many images were `seen` into an npz file."""
    arrays = {f"{name}/{field}": array for name, block in blocks.items() for field, array in block.to_arrays().items()}
    arrays |= {"blocks": np.array(list(blocks)), "classes": np.array(classes), "seen": np.array(seen)}
    write_whole(path, lambda file: np.savez(file, **arrays))


def load_statistics(path: Path) -> tuple[dict[str, BlockStatistics], int]:
    """The blocks that :func:`save_statistics` wrote, and how many images were seen."""
    with np.load(path, allow_pickle=False) as file:
        blocks = {
            str(name): BlockStatistics.from_arrays({field: file[f"{name}/{field}"] for field in FIELDS})
            for name in file["blocks"]
        }
        return blocks, int(file["seen"])
