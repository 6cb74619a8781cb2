from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from .own_data import changed, use_run_length_codes, write_set


@pytest.fixture
def catalogs(monkeypatch) -> None:
    """detectron2's data sets, to which a test may add its own."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


@pytest.fixture(scope="module")
def data(module_path) -> SimpleNamespace:
    """Annotation files, and the folder of images of each."""
    things = write_set(module_path, "things", count=2)
    kites = write_set(module_path, "kites", count=2, classes=1)
    return SimpleNamespace(
        things=things,
        kites=kites,
        codes=changed(things, module_path / "codes.json", use_run_length_codes),
        images={
            name: module_path / ("kites" if name == "kites" else "things") for name in ("things", "kites", "codes")
        },
    )
