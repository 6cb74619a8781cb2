"""A trained run to export; see tests/inference/conftest.py."""

from ..inference.conftest import trained

__all__ = ["trained"]
