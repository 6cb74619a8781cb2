"""What is measured: a part of a detector, run in one way."""

from dataclasses import dataclass

import torch

from se_detection.errors import UserError

PARTS = ("backbone", "backbone+fpn", "detector")
MODES = ("inference", "train")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# FPN adds maps of res5, whose stride it is, to those of res4.
STEP = 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """One set of circumstances, the same for all arms.

    Args:
        part: `backbone` (the backbone alone), `backbone+fpn` or `detector` (Faster R-CNN).
        mode: `inference`, or `train`: forward, backward and a step of SGD.
        device: `cpu` or `cuda`.
        dtype: `float32`, or the half precision of autocast and of fused models.
        size: height and width of the images in pixels, a multiple of 32.
        batch: how many images.
        depth: of the backbone.

    Raises:
        UserError: the device isn't there, or a number is none that can be.
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
            raise UserError("--device cuda: PyTorch finds no GPU here; leave --device out to measure on the CPU")
        if self.size < STEP or self.size % STEP:
            raise UserError(f"--size {self.size}: give multiples of {STEP}, which is what FPN takes")
        if self.batch < 1:
            raise UserError(f"--batch {self.batch}: give at least one image")

    def __str__(self) -> str:
        return f"{self.part}, {self.mode}, {self.dtype}, {self.size} px, batch {self.batch}"

    @property
    def weight(self) -> float:
        """About how much longer a pass takes than another case's."""
        return self.batch * self.size**2 * (3 if self.mode == "train" else 1)
