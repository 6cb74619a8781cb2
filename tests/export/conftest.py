"""A trained run to export; see tests/inference/conftest.py."""

from ..inference.conftest import _one_block, trained

__all__ = ["_one_block", "trained"]
