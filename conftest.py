"""Fixtures and helpers that several tests share."""

import copy
import gc
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

# Importing se_detection registers the toy set in this folder; its images are drawn on first use.
DATASETS = tempfile.TemporaryDirectory(prefix="datasets-")
os.environ["DETECTRON2_DATASETS"] = DATASETS.name
# timm imports it if it is installed, which takes most of a second in each process; only its own test needs it.
sys.modules["wandb"] = None
# No deadline, because a busy machine is slow. The examples are the same in each run, unless FUZZ asks for more of them.
settings.register_profile("busy", deadline=None, derandomize="FUZZ" not in os.environ)
settings.load_profile("busy")


def pytest_addoption(parser) -> None:
    parser.addoption("--faults", type=int, default=1, help="how often each random fault of a run is tested")


def pytest_collection_modifyitems(items) -> None:
    # The longest test starts first, so that no process of pytest-xdist waits for it at the end.
    items.sort(key=lambda item: item.path.name not in ("test_launch.py", "test_signals.py"))


def pytest_collection_finish() -> None:
    # What is imported stays: garbage collections need not go through it.
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    # Not above: the first process of pytest-xdist, for which the others wait, runs no test.
    import torch

    # Without a GPU, torch.manual_seed keeps the traces of its calls, which takes longer than many a test.
    seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
    seed(0)


@pytest.fixture(autouse=True, scope="session")
def _fast_evaluations() -> Iterator[None]:
    """TensorBoard gets small images: drawing them takes longer than a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("se_detection.engine.tensorboard.LONGEST", 128)
        patch.setattr("se_detection.engine.tensorboard.IMAGES", 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def _fast_yaml() -> Iterator[None]:
    """The parser and emitter in C, and each shipped config once: a config takes as long as many a test."""
    folder, parsed = str(Path(__file__).parent / "configs"), {}
    loader, dumper = (getattr(yaml, f"C{name}", getattr(yaml, name)) for name in ("SafeLoader", "SafeDumper"))

    def safe_load(stream):
        path = str(getattr(stream, "name", ""))
        if not path.startswith(folder):
            return yaml.load(stream, loader)
        if path not in parsed:
            parsed[path] = yaml.load(stream, loader)
        return copy.deepcopy(parsed[path])

    def safe_dump(data, stream=None, **options):
        return yaml.dump(data, stream, dumper, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "safe_load", safe_load)
        patch.setattr(yaml, "safe_dump", safe_dump)
        yield


@pytest.fixture(autouse=True, scope="module")
def _own_data_sets() -> Iterator[None]:
    """Removes the data sets that the tests of a file register with detectron2."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    with pytest.MonkeyPatch.context() as patch:
        for catalog in (DatasetCatalog, MetadataCatalog):
            patch.setattr(catalog, "data", dict(catalog.data))
        yield


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Makes SE-ResNets with fewer blocks: two in res2 and res5, so that there are blocks of each kind."""
    from tests.helpers import fewer_blocks

    with fewer_blocks():
        yield


@pytest.fixture
def shallow_here() -> Iterator[None]:
    """`shallow` for one test."""
    from tests.helpers import fewer_blocks

    with fewer_blocks():
        yield


@pytest.fixture(scope="module")
def module_path(tmp_path_factory) -> Iterator[Path]:
    """As `tmp_path`, for all tests of a file; removed after them, because all checkpoints together take 20 GB."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run_script(monkeypatch) -> Callable[..., None]:
    """A function that runs a script of tools/ in this process, with the given arguments."""

    def run(name: str, *arguments: object) -> None:
        script = str(Path(__file__).parent / "tools" / name)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images next to the checkout; it is not part of the project."""
    folder = Path(__file__).resolve().parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there are no real images in {folder}")
    return folder


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("this test needs chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="this test needs playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()
