"""The runs of the gates' tests."""

from tests.gates.conftest import make_run, toy

__all__ = ["make_run", "toy"]
