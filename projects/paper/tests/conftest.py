"""The runs of the gates' tests."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.gates.conftest import make_run, toy

__all__ = ["make_run", "toy"]


@pytest.fixture(autouse=True, scope="module")
def _no_other_images(_own_data_sets) -> None:
    """Forgets the data set that the gates' tests may have registered under the same name."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.data.pop("images", None)
