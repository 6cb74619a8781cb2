import pytest

from ..case import Case


@pytest.fixture
def make_case():
    """A function that makes a small case; keyword arguments replace its fields."""

    def make(**changes) -> Case:
        options = {
            "part": "backbone+fpn",
            "mode": "inference",
            "device": "cpu",
            "dtype": "float32",
            "size": 64,
            "batch": 1,
            "depth": 18,
        }
        return Case(**{**options, **changes})

    return make
