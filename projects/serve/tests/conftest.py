"""Two small runs, with and without SE, a server with both, and a server with fake detectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from types import SimpleNamespace

import pytest

from se_detection.data.toy import make_toy_dataset
from se_detection.gates.excitations import explain
from tests.inference.small_runs import write_run

from ..app import TryPage
from ..detectors import Detectors
from ..server import listen, open_server

PLAIN = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
IMAGES = 3


@contextmanager
def serving(page: TryPage) -> Iterator[str]:
    """Serves a page on a free port, and yields its address without a trailing slash."""
    with open_server(page, listen(page.host, 0)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Three images of 128x128 pixels: `annotations/val.json` and `val/`."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy_dataset(folder, split="val", count=IMAGES)
    return folder


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory) -> Path:
    """A run without SE. Weights are random, and there are 30 boxes per image."""
    return write_run(tmp_path_factory.mktemp("runs") / "R", *PLAIN)


@pytest.fixture(scope="session")
def se_run(tmp_path_factory, toy) -> Path:
    """A run with SE, and with mean gates over the toy images in `excitations`."""
    run = write_run(tmp_path_factory.mktemp("runs") / "SE_R")
    explain(run, split=(toy / "annotations" / "val.json", toy / "val"), ablation=False)
    return run


@pytest.fixture(scope="session")
def detectors(plain_run, se_run) -> Detectors:
    return Detectors([plain_run, se_run])


@pytest.fixture(scope="session")
def url(detectors) -> Iterator[str]:
    """The address of a page with the plain run and the SE run, in this order."""
    with serving(TryPage(detectors, "127.0.0.1")) as url:
        yield url


class FakeDetectors:
    """Detects nothing, records the sizes of the images in bytes, and calls `during`."""

    def __init__(self) -> None:
        self.names = ["R", '<b>SE_R & "co"</b>']
        self.runs = [Path(name) for name in self.names]
        self.colours = {"cup": "rgb(1, 2, 3)"}
        cfg = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"))
        self.predictors = [SimpleNamespace(weights=Path("model_final.pth"), cfg=cfg)] * 2
        self.lock = Lock()
        self.sizes: list[int] = []
        self.during = lambda: None

    def has_gates(self, number: int) -> bool:
        return number == 1

    def detect(self, data: bytes) -> dict[str, object]:
        with self.lock:
            self.sizes.append(len(data))
            self.during()
        return {"runs": []}

    def gate_map(self, number: int, data: bytes) -> dict[str, object]:
        return {**self.detect(data), "number": number}


@pytest.fixture
def fake() -> FakeDetectors:
    return FakeDetectors()


@pytest.fixture
def fake_url(fake) -> Iterator[str]:
    """The address of a page with fake detectors."""
    with serving(TryPage(fake, "127.0.0.1")) as url:
        yield url
