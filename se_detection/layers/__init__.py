"""The SE block and the operation that joins it to a residual block; nothing here knows detectron2's config."""

from .residual_gate import residual_gate, residual_sigmoid_gate
from .squeeze_excitation import SqueezeExcitation

__all__ = ["SqueezeExcitation", "residual_gate", "residual_sigmoid_gate"]
