"""A trained run to export; see tests/prediction/conftest.py."""

from ..prediction.conftest import trained

__all__ = ["trained"]
