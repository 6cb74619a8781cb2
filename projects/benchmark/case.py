"""A case: the part of a detector that is measured, its mode, precision, image size and batch size."""

from dataclasses import dataclass

import torch

from se_detection.errors import UserError

PARTS = ("backbone", "backbone+fpn", "detector")
MODES = ("inference", "train")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The stride of res5: FPN upsamples its map to the size of res4's.
SIZE_DIVISOR = 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """The conditions of a measurement, the same for all models.

    Args:
        part: `backbone` (without FPN), `backbone+fpn` or `detector` (Faster R-CNN).
        mode: `inference`, or `train`: forward, backward and an SGD step.
        device: `cpu` or `cuda`.
        dtype: `float32`, or a half precision for autocast and fused models.
        size: height and width of the images in pixels, a multiple of 32.
        batch: number of images.
        depth: depth of the ResNet.

    Raises:
        UserError: there is no such device, or a number is out of range.
    """

    part: str
    mode: str
    device: str
    dtype: str
    size: int
    batch: int
    depth: int

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no GPU here; omit --device to measure on the CPU")
        if self.size < SIZE_DIVISOR or self.size % SIZE_DIVISOR:
            raise UserError(f"--size {self.size}: FPN needs a multiple of {SIZE_DIVISOR}")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give at least one image")

    def __str__(self) -> str:
        return f"{self.part}, {self.mode}, {self.dtype}, {self.size} px, batch {self.batch}"

    @property
    def relative_cost(self) -> float:
        """A rough estimate of the time of a pass, to compare cases."""
        return self.batch * self.size**2 * (3 if self.mode == "train" else 1)
