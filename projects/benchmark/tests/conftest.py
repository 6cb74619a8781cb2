import pytest

from ..case import Case


@pytest.fixture
def make_case():
    """A function that makes a small case, with what is to be other."""

    def make(**other) -> Case:
        options = {
            "part": "backbone+fpn",
            "mode": "inference",
            "device": "cpu",
            "dtype": "float32",
            "size": 64,
            "batch": 1,
            "depth": 18,
        }
        return Case(**{**options, **other})

    return make
