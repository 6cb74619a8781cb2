"""Weights: other projects' files in detectron2's names, what a file assumes, and loading that is strict."""

from .assumptions import WeightsAssumptions
from .convert import SOURCES, convert_state_dict
from .convert_input import convert_input

__all__ = ["SOURCES", "WeightsAssumptions", "convert_input", "convert_state_dict"]
