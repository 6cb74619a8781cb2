from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from .custom_data import changed, use_rle, write_set


@pytest.fixture
def catalogs(monkeypatch) -> None:
    """A copy of detectron2's catalogs, so that a test may register data sets."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


@pytest.fixture(scope="module")
def data(module_path) -> SimpleNamespace:
    """Annotation files, and the image folder of each."""
    things = write_set(module_path, "things", count=2)
    kites = write_set(module_path, "kites", count=2, classes=1)
    return SimpleNamespace(
        things=things,
        kites=kites,
        rle=changed(things, module_path / "rle.json", use_rle),
        images={name: module_path / ("kites" if name == "kites" else "things") for name in ("things", "kites", "rle")},
    )
