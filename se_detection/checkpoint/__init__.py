"""Weights: other projects' files in detectron2's names, what a file assumes, and loading that is strict."""

from .convert import SOURCES, convert_state_dict
from .convert_input import convert_input
from .layout import Layout

__all__ = ["SOURCES", "Layout", "convert_input", "convert_state_dict"]
