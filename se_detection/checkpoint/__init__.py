"""Weights of other projects, in detectron2's names."""

from .convert import convert_state_dict

__all__ = ["convert_state_dict"]
