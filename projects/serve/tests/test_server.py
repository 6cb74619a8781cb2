"""The page over a network: hostile, slow and concurrent clients."""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.data.hostile_images import broken

from ..app import HEADERS, MAX_REQUESTS, MEBIBYTES
from ..server import _Handler
from .clients import HOST, POST, ask, connect, detect, image, raw, wait_until, without_times

REQUESTS = {
    "page": (b"GET / HTTP/1.1\r\n" + HOST, 200),
    "style": (b"HEAD /page.css HTTP/1.1\r\n" + HOST, 200),
    "image": (POST + b"Content-Length: 0\r\n", 200),
    "parent folders": (b"GET /../../../../etc/passwd HTTP/1.1\r\n" + HOST, 404),
    "escaped parent folders": (b"GET /%2e%2e/%2e%2e%2fetc/passwd HTTP/1.1\r\n" + HOST, 404),
    "two slashes": (b"GET //etc/passwd HTTP/1.1\r\n" + HOST, 404),
    "binary target": (b"GET /\xff\xfe\x1b[31m HTTP/1.1\r\n" + HOST, 404),
    "method": (b"DELETE / HTTP/1.1\r\n" + HOST, 405),
    "made-up method": (b"BREW /detect HTTP/1.1\r\n" + HOST, 405),
    "preflight": (b"OPTIONS /detect HTTP/1.1\r\nOrigin: http://evil.example\r\n" + HOST, 405),
    "another host": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n", 421),
    "another host in the target": (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST, 421),
    "no host": (b"GET / HTTP/1.0\r\n", 421),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + HOST, 421),
    "another origin": (POST + b"Content-Length: 0\r\nOrigin: http://evil.example\r\n", 403),
    "malformed origin": (POST + b"Content-Length: 0\r\nOrigin: \x00\xff://[\r\n", 403),
    "form": (b"POST /detect HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n" + HOST, 415),
    "no length": (POST, 411),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n", 411),
    "too long": (POST + b"Content-Length: %d\r\n" % ((MEBIBYTES << 20) + 1), 413),
    "far too long": (POST + b"Content-Length: 1" + b"0" * 30 + b"\r\n", 413),
    "malformed target": (b"GET http://[ HTTP/1.1\r\n" + HOST, 400),
    "long target": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST, 414),
    "long header": (b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: " + b"a" * 70_000 + b"\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%d: y\r\n" % n for n in range(200)), 431),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n", 505),
    "not a request": (b"<script>alert(1)</script> a b c\r\n", 400),
}


@pytest.fixture
def quiet(capfd, caplog) -> Iterator[None]:
    """Nothing is printed or logged about clients' errors."""
    yield
    assert capfd.readouterr() == ("", "")
    assert caplog.get_records("call") == []


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", REQUESTS)
def test_responses_are_one_line_with_security_headers(fake_url, name) -> None:
    request, expected = REQUESTS[name]
    status, headers, body = raw(fake_url, request + b"\r\n")
    assert status == expected
    assert HEADERS.items() <= headers.items()
    assert headers["Connection"] == "close"
    assert headers["Server"] == "se_detection"
    if status != 200:
        assert headers["Content-Type"] == "application/json"
        content = json.loads(body or b'{"error": ""}')
        assert list(content) == ["error"]
        assert b"\n" not in body
        assert b"evil" not in body
        assert b"script" not in body
    assert ask(fake_url)[0] == 200


def test_security_headers(fake_url) -> None:
    _, headers, _ = raw(fake_url, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    # No scripts, styles or images from elsewhere, no inline ones, and no frames.
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "data:"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_client_that_sends_too_much_gets_a_response(fake_url, fake) -> None:
    status, content = detect(fake_url, bytes((MEBIBYTES << 20) + 1))
    assert (status, content) == (413, {"error": "the file is larger than 32 MiB; send a smaller one"})
    assert detect(fake_url, bytes(MEBIBYTES << 20))[0] == 200
    assert fake.sizes == [MEBIBYTES << 20]


@pytest.mark.usefixtures("quiet")
def test_idle_connections_are_closed(fake_url, fake, monkeypatch) -> None:
    assert 10 <= _Handler.timeout <= 60
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    for beginning in (b"", b"POST /detect HT", POST):
        with connect(fake_url) as connection:
            connection.sendall(beginning)
            assert connection.recv(100) == b"", beginning
    # During an image there is a response; what the client does after it has no effect.
    for after in (b"", b"ge", b"more" * 100_000):
        with connect(fake_url) as connection:
            connection.sendall(POST + b"Content-Length: 5\r\n\r\nima")
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 400
            assert list(json.loads(answer.read())) == ["error"]
            connection.sendall(after)
    assert fake.sizes == []
    assert detect(fake_url, b"image")[0] == 200


@pytest.mark.usefixtures("quiet")
def test_slow_senders_do_not_keep_a_place(fake_url, fake, monkeypatch) -> None:
    assert 30 <= _Handler.request_timeout <= 120
    monkeypatch.setattr(_Handler, "request_timeout", 1.0)
    with contextlib.ExitStack() as connections:
        senders = [connections.enter_context(connect(fake_url)) for _ in range(MAX_REQUESTS)]
        for sender in senders:
            sender.sendall(POST + b"Content-Length: 1000000\r\n\r\n")
        # All places are taken ...
        wait_until(lambda: detect(fake_url, b"image")[0] == 503)

        def is_free() -> bool:
            for sender in senders:
                with contextlib.suppress(ConnectionError):
                    sender.sendall(b"x")
            return detect(fake_url, b"image")[0] == 200

        # ... and free again, although the senders are not idle.
        wait_until(is_free)
    # The limit does not apply to the detection.
    monkeypatch.setattr(_Handler, "request_timeout", 0.2)
    fake.during = lambda: time.sleep(0.3)
    assert detect(fake_url, b"image")[0] == 200


@pytest.mark.usefixtures("quiet")
def test_clients_that_disconnect_have_no_effect(fake_url, fake) -> None:
    for _ in range(6):
        with connect(fake_url) as connection:
            connection.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))
    wait_until(lambda: threads_of_requests() == 0)
    assert fake.sizes == []
    # The client disconnects before the response.
    fake.during = lambda: time.sleep(0.1)
    with connect(fake_url) as connection:
        connection.sendall(POST + b"Content-Length: 5\r\n\r\nimage")
    wait_until(lambda: fake.sizes == [5])
    fake.during = lambda: None
    assert detect(fake_url, b"image")[0] == 200


def threads_of_requests() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_broken_files_are_refused_in_one_line(url) -> None:
    for name, data in broken().items():
        for path in ("/detect", "/gates/1"):
            status, content = detect(url, data, path)
            assert (status, list(content)) == (422, ["error"]), name
            assert content["error"].isprintable(), name
            assert "/proc" not in content["error"], name
    thin = image(0, (40_000, 10), "PNG")
    for path in ("/detect", "/gates/1"):
        status, content = detect(url, thin, path)
        assert status == 422
        assert "40000x10 pixels are too long and thin" in content["error"]
    status, content = detect(url, image(0), "/gates/0")
    assert status == 422
    assert content["error"] == "R: the detector has no SE gates"
    assert detect(url, image(0))[0] == 200


def test_concurrent_requests_have_the_same_results(url, detectors) -> None:
    tasks = [(path, image(seed)) for seed in range(4) for path in ("/detect", "/gates/1")[: 2 - seed // 2]]
    alone = [
        without_times(detectors.detect(data) if path == "/detect" else detectors.gate_map(1, data))
        for path, data in tasks
    ]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda task: detect(url, task[1], task[0]), tasks))
    assert [(status, without_times(answer)) for status, answer in together] == [(200, answer) for answer in alone]
    # The results differ between requests.
    assert len({json.dumps(answer) for answer in alone}) == len(tasks)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_no_files_memory_or_threads_are_left(url, se_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def here() -> list:
        return sorted([*tmp_path.rglob("*"), *se_run.rglob("*")])

    size = (1500, 1000)
    for seed in range(8):
        assert detect(url, image(seed, size))[0] == 200
    assert detect(url, image(0, size), "/gates/1")[0] == 200
    wait_until(lambda: threads_of_requests() == 0)
    files, memory, threads = here(), resident(), len(os.listdir("/proc/self/task"))
    descriptors = len(os.listdir("/proc/self/fd"))
    for seed in range(8, 26):
        assert detect(url, image(seed, size))[0] == 200
    assert detect(url, image(1, size), "/gates/1")[0] == 200
    assert detect(url, broken()["cut_0.5.jpg"], "/gates/1")[0] == 422
    wait_until(lambda: threads_of_requests() == 0)
    assert here() == files
    # 18 images of 4.5 MB each.
    assert resident() - memory < 40e6
    assert len(os.listdir("/proc/self/task")) <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors
