"""Weights from servers: a small one in this process, which counts its requests."""

import hashlib
import logging
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler
from huggingface_hub import constants

from se_detection import create_backbone
from se_detection.checkpoint import weights_file
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.weights_file import find_weights

from ..helpers import raises

CONTENT = b"weights" * 1000


class Server(ThreadingHTTPServer):
    """Sends `CONTENT` for `/ok/...`, half of it for `/half/...`, nothing for `/silent/...`, and else `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.status = 404


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if "/silent/" in self.path:
            time.sleep(2)
        if not self.path.startswith(("/ok/", "/half/")):
            self.send_error(self.server.status)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if "/ok/" in self.path else CONTENT[: len(CONTENT) // 2])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Server]:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with Server() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"{server.url}/ok/detectron2/")
        monkeypatch.setattr(ModelCatalog, "S3_C2_DETECTRON_PREFIX", f"{server.url}/ok/detectron")
        yield server
        server.shutdown()


def test_a_file_is_downloaded_once(server, tmp_path) -> None:
    name = f"R-50-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
    url = f"{server.url}/ok/{name}?matching_heuristics=True"
    for number, weights in enumerate((url, f"detectron2://{name}", "catalog://ImageNetPretrained/MSRA/R-50"), 1):
        for _ in range(2):
            path = find_weights(weights)
            assert path.read_bytes() == CONTENT
            assert path.is_relative_to(tmp_path / "cache")
            assert len(server.requests) == number
    assert server.requests[1:] == [
        f"GET /ok/detectron2/{name}",
        "GET /ok/detectron/ImageNetPretrained/MSRA/R-50.pkl",
    ]
    # Also without the server.
    server.shutdown()
    assert find_weights(weights) == path


@pytest.mark.parametrize(
    ("weights", "code", "named"),
    [
        ("{url}/none/R-50.pth", "weights.no_download", "HTTP Error 404"),
        ("{url}/half/R-50.pth", "weights.no_download", "3500 out of 7000 bytes"),
        ("{url}/silent/R-50.pth", "weights.no_download", "timed out"),
        ("http://127.0.0.1:9/R-50.pth", "weights.no_download", "Connection refused"),
        ("https://weights.invalid/R-50.pth", "weights.no_download", "https://weights.invalid/R-50.pth"),
        ("{url}/ok/R-50-0badc0de.pth", "weights.wrong_sha256", "R-50-0badc0de.pth"),
        ("catalog://ImageNetPretrained/MSRA/R-51", "weights.not_found", "catalog://ImageNetPretrained/MSRA/R-51"),
        ("catalog://nothing", "weights.not_found", "catalog://nothing"),
        ("s3://bucket/R-50.pth", "weights.not_found", "s3:// is not supported"),
        ("no/R-50.pth", "weights.not_found", "no/R-50.pth"),
    ],
)
def test_a_failed_download_is_one_error(server, monkeypatch, capsys, tmp_path, weights, code, named) -> None:
    monkeypatch.setattr(weights_file, "TIMEOUT", 0.3)
    with raises(code, named):
        find_weights(weights.format(url=server.url))
    assert [path for path in tmp_path.rglob("*.pth*") if path.suffix in (".pth", ".tmp")] == [] or "sha256" in code
    # In addition to the error there is only iopath's progress bar; its log of the failure is dropped.
    assert "Failed" not in capsys.readouterr().err


def test_the_name_behind_a_url_is_given(server, monkeypatch) -> None:
    server.status = 503
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"{server.url}/")
    for use in (find_weights, convert_input):
        with raises("weights.no_download", "detectron2://a/R-50.pkl", f"download {server.url}/a/R-50.pkl", "503"):
            use("detectron2://a/R-50.pkl")


@pytest.mark.parametrize("offline", [False, True])
def test_the_hub_is_asked_once(server, monkeypatch, tmp_path, offline) -> None:
    """timm and huggingface_hub would ask 12 times within a minute."""
    server.status = 503
    for name, value in {"ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": offline}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/{filename}")
    name = "timm://seresnet50.a1_in1k"
    for use in (find_weights, lambda name: create_backbone("se_resnet50", weights=name), convert_input):
        server.requests.clear()
        with raises(
            "weights.no_download", name, "HF_HUB_OFFLINE" if offline else "503", "se-det convert seresnet50.a1"
        ):
            use(name)
        # huggingface_hub may ask for other things of its own.
        asked = [request for request in server.requests if "/timm/" in request]
        assert asked == ([] if offline else ["HEAD /timm/seresnet50.a1_in1k/model.safetensors"])
    assert logging.getLogger("iopath.common.download").filters == []
