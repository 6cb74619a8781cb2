"""The page over a network: strangers, slow ones, many at once; and tools/serve.py as people start it."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from se_detection import UserError
from se_detection.serve import serve
from se_detection.serve.app import AT_ONCE, HEADERS, MEBIBYTES
from se_detection.serve.server import _Handler, is_loopback, listen

from ..data.hostile_images import broken

OCTETS = "application/octet-stream"
HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /detect HTTP/1.1\r\nContent-Type: application/octet-stream\r\n" + HOST


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def raw(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes as they are; status, headers and body of what comes back."""
    with connect(url) as connection:
        connection.sendall(request)
        answer = HTTPResponse(connection, method=request.split()[0].decode("latin1"))
        answer.begin()
        return answer.status, dict(answer.getheaders()), answer.read()


def ask(url: str, method: str = "GET", path: str = "/", data: bytes | None = None) -> tuple[int, bytes]:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.request(method, path, data, {"Content-Type": OCTETS} if data is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def detect(url: str, data: bytes, path: str = "/detect") -> tuple[int, dict]:
    status, body = ask(url, "POST", path, data)
    return status, json.loads(body)


def picture(seed: int, size: tuple[int, int] = (128, 96), kind: str = "JPEG") -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


REQUESTS = {
    "page": (b"GET / HTTP/1.1\r\n" + HOST, 200),
    "style": (b"HEAD /page.css HTTP/1.1\r\n" + HOST, 200),
    "picture": (POST + b"Content-Length: 0\r\n", 200),
    "climbing": (b"GET /../../../../etc/passwd HTTP/1.1\r\n" + HOST, 404),
    "climbing escaped": (b"GET /%2e%2e/%2e%2e%2fetc/passwd HTTP/1.1\r\n" + HOST, 404),
    "two slashes": (b"GET //etc/passwd HTTP/1.1\r\n" + HOST, 404),
    "no letters": (b"GET /\xff\xfe\x1b[31m HTTP/1.1\r\n" + HOST, 404),
    "method": (b"DELETE / HTTP/1.1\r\n" + HOST, 405),
    "made-up method": (b"BREW /detect HTTP/1.1\r\n" + HOST, 405),
    "preflight": (b"OPTIONS /detect HTTP/1.1\r\nOrigin: http://evil.example\r\n" + HOST, 405),
    "another host": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n", 421),
    "another host in the target": (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST, 421),
    "no host": (b"GET / HTTP/1.0\r\n", 421),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + HOST, 421),
    "another origin": (POST + b"Content-Length: 0\r\nOrigin: http://evil.example\r\n", 403),
    "strange origin": (POST + b"Content-Length: 0\r\nOrigin: \x00\xff://[\r\n", 403),
    "form": (b"POST /detect HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n" + HOST, 415),
    "no length": (POST, 411),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n", 411),
    "too long": (POST + b"Content-Length: %d\r\n" % ((MEBIBYTES << 20) + 1), 413),
    "far too long": (POST + b"Content-Length: 1" + b"0" * 30 + b"\r\n", 413),
    "target that can't be taken apart": (b"GET http://[ HTTP/1.1\r\n" + HOST, 400),
    "long target": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST, 414),
    "long header": (b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: " + b"a" * 70_000 + b"\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%d: y\r\n" % n for n in range(200)), 431),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n", 505),
    "no request": (b"<script>alert(1)</script> a b c\r\n", 400),
}


@pytest.fixture
def quiet(capfd, caplog) -> Iterator[None]:
    """Nothing is said of what strangers do."""
    yield
    assert capfd.readouterr() == ("", "")
    assert caplog.get_records("call") == []


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", REQUESTS)
def test_each_answer_is_one_line_and_tells_browsers_to_be_careful(told_url, name) -> None:
    request, expected = REQUESTS[name]
    status, headers, body = raw(told_url, request + b"\r\n")
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
    assert ask(told_url)[0] == 200


def test_what_the_headers_keep_a_browser_from(told_url) -> None:
    _, headers, _ = raw(told_url, b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    # No script, style or picture of another place, none within the page's text, and no page that has it in a frame.
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "data:"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_who_sends_too_much_still_reads_the_answer(told_url, told) -> None:
    status, content = detect(told_url, bytes((MEBIBYTES << 20) + 1))
    assert (status, content) == (413, {"error": "the file is larger than 32 MiB; send a smaller one"})
    assert detect(told_url, bytes(MEBIBYTES << 20))[0] == 200
    assert told.given == [MEBIBYTES << 20]


@pytest.mark.usefixtures("quiet")
def test_who_says_nothing_is_hung_up_on(told_url, told, monkeypatch) -> None:
    assert 10 <= _Handler.timeout <= 60
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    for beginning in (b"", b"POST /detect HT", POST):
        with connect(told_url) as connection:
            connection.sendall(beginning)
            assert connection.recv(100) == b"", beginning
    # Within a picture there is an answer; who goes on, or goes away after it, does no harm.
    for after in (b"", b"ture", b"more" * 100_000):
        with connect(told_url) as connection:
            connection.sendall(POST + b"Content-Length: 7\r\n\r\npic")
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 400
            assert list(json.loads(answer.read())) == ["error"]
            connection.sendall(after)
    assert told.given == []
    assert detect(told_url, b"picture")[0] == 200


@pytest.mark.usefixtures("quiet")
def test_who_sends_little_by_little_keeps_no_place(told_url, told, monkeypatch) -> None:
    assert 30 <= _Handler.arrival <= 120
    monkeypatch.setattr(_Handler, "arrival", 1.0)
    with contextlib.ExitStack() as connections:
        senders = [connections.enter_context(connect(told_url)) for _ in range(AT_ONCE)]
        for sender in senders:
            sender.sendall(POST + b"Content-Length: 1000000\r\n\r\n")
        # All places are taken ...
        wait_until(lambda: detect(told_url, b"picture")[0] == 503)

        def is_free() -> bool:
            for sender in senders:
                with contextlib.suppress(ConnectionError):
                    sender.sendall(b"x")
            return detect(told_url, b"picture")[0] == 200

        # ... and free again, though nobody has been silent.
        wait_until(is_free)
    # The work has time of its own.
    monkeypatch.setattr(_Handler, "arrival", 0.2)
    told.during = lambda: time.sleep(0.3)
    assert detect(told_url, b"picture")[0] == 200


@pytest.mark.usefixtures("quiet")
def test_who_goes_away_in_the_middle_does_no_harm(told_url, told) -> None:
    for _ in range(6):
        with connect(told_url) as connection:
            connection.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + bytes(1000))
    wait_until(lambda: threads_of_requests() == 0)
    assert told.given == []
    # Nobody waits for this answer.
    told.during = lambda: time.sleep(0.1)
    with connect(told_url) as connection:
        connection.sendall(POST + b"Content-Length: 7\r\n\r\npicture")
    wait_until(lambda: told.given == [7])
    told.during = lambda: None
    assert detect(told_url, b"picture")[0] == 200


def threads_of_requests() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_address_has_to_be_free_and_of_this_machine() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host 127.0.0.1 --port {port}: .*in use.*; give another \(0"):
            listen("127.0.0.1", port)
        # The same port of all addresses is taken, too.
        with pytest.raises(UserError, match="in use"):
            listen("0.0.0.0", port)
        # It is said before anything is loaded.
        with pytest.raises(UserError, match="in use"):
            serve(lambda: pytest.fail("loaded"), "127.0.0.1", port)
    for host, port in (("192.0.2.1", 0), ("a..b", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1), ("2001:db8::1", 0)):
        with pytest.raises(UserError, match=rf"^--host {re.escape(host)} --port {port}: .*; give another"):
            listen(host, port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_loads(number, monkeypatch) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as caught:
        serve(lambda: os.kill(os.getpid(), number), "127.0.0.1", 0)
    assert caught.value.code == 128 + number


def test_other_servers_of_the_process_still_log(told_url) -> None:
    assert ask(told_url)[0] == 200
    assert not logging.getLogger("werkzeug").disabled


def other_addresses() -> list[str]:
    """Of this machine: another loopback one, and the one that leads outside, if there is any."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        try:
            outside.connect(("192.0.2.1", 9))
        except OSError:
            return ["127.0.0.2"]
        return ["127.0.0.2", outside.getsockname()[0]]


def test_nobody_else_reaches_it_by_default(told_url) -> None:
    port = urlsplit(told_url).port
    for address in other_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)


def test_which_hosts_are_this_machines_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.20", "my-machine", "", "localhost.example")))


def address(said: str) -> str:
    """Without a slash at the end, of what is said when the page is there."""
    found = re.fullmatch(r"Open (?:(http://\S+:\d+)/|port (\d+) of any \D*) in a browser; Ctrl-C ends this\.\n", said)
    assert found, said
    return found[1] or f"http://127.0.0.1:{found[2]}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_it_says_where_it_is_until_a_signal(told, host, number, monkeypatch, capfd) -> None:
    if ":" in host:
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    shown, found = [], []

    def visit() -> None:
        try:
            # The whole line, which may arrive in parts.
            wait_until(lambda: (shown.append(capfd.readouterr()) or True) and any("\n" in item.out for item in shown))
            found.append(ask(address("".join(item.out for item in shown)))[0])
        finally:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "_exit", sys.exit)
    visitor = threading.Thread(target=visit)
    visitor.start()
    with pytest.raises(SystemExit) as caught:
        serve(lambda: told, host, 0)
    visitor.join()
    assert caught.value.code == 128 + number
    assert found == [200]
    out, err = ("".join(parts) for parts in zip(*shown, strict=True))
    name = "[::1]" if host == "::1" else host
    where = "port [0-9]+ of any address of this machine" if host == "0.0.0.0" else rf"http://{re.escape(name)}:\d+/"
    assert re.fullmatch(rf"Open {where} in a browser; Ctrl-C ends this\.\n", out)
    if host == "0.0.0.0":
        assert re.match(r"warning: --host 0\.0\.0\.0: whoever reaches port \d+ of this machine can send pictures", err)
        assert err.count("\n") == 1
    else:
        assert err == ""
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_strange_files_are_refused_in_one_line_each(url) -> None:
    for name, data in broken().items():
        for path in ("/detect", "/gates/1"):
            status, content = detect(url, data, path)
            assert (status, list(content)) == (422, ["error"]), name
            assert content["error"].isprintable(), name
            assert "/proc" not in content["error"], name
    thin = picture(0, (40_000, 10), "PNG")
    for path in ("/detect", "/gates/1"):
        status, content = detect(url, thin, path)
        assert status == 422
        assert "40000x10 pixels are too long and thin" in content["error"]
    status, content = detect(url, picture(0), "/gates/0")
    assert status == 422
    assert content["error"] == "R: the detector has no SE gates to look at"
    assert detect(url, picture(0))[0] == 200


def without_times(answer: dict) -> dict:
    for run in answer.get("runs", []):
        assert 0 < run.pop("seconds") < 60
    return answer


def test_several_at_once_have_the_answers_that_each_has_alone(url, detectors) -> None:
    tasks = [(path, picture(seed)) for seed in range(4) for path in ("/detect", "/gates/1")[: 2 - seed // 2]]
    alone = [
        without_times(detectors.detect(data) if path == "/detect" else detectors.gate_map(1, data))
        for path, data in tasks
    ]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda task: detect(url, task[1], task[0]), tasks))
    assert [(status, without_times(answer)) for status, answer in together] == [(200, answer) for answer in alone]
    # They are not all the same.
    assert len({json.dumps(answer) for answer in alone}) == len(tasks)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_of_a_picture_stays(url, se_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def here() -> list:
        return sorted([*tmp_path.rglob("*"), *se_run.rglob("*")])

    size = (1500, 1000)
    for seed in range(8):
        assert detect(url, picture(seed, size))[0] == 200
    assert detect(url, picture(0, size), "/gates/1")[0] == 200
    wait_until(lambda: threads_of_requests() == 0)
    files, memory, threads = here(), resident(), len(os.listdir("/proc/self/task"))
    descriptors = len(os.listdir("/proc/self/fd"))
    for seed in range(8, 26):
        assert detect(url, picture(seed, size))[0] == 200
    assert detect(url, picture(1, size), "/gates/1")[0] == 200
    assert detect(url, broken()["cut_0.5.jpg"], "/gates/1")[0] == 422
    wait_until(lambda: threads_of_requests() == 0)
    assert here() == files
    # 18 pictures of 4.5 MB each.
    assert resident() - memory < 40e6
    assert len(os.listdir("/proc/self/task")) <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_what_cant_be_served_is_said_in_one_line(told_url, plain_run, run_script, tmp_path, capsys) -> None:
    port = urlsplit(told_url).port
    (tmp_path / "empty").mkdir()
    lazy = tmp_path / "lazy"
    lazy.mkdir()
    (lazy / "config.yaml").write_text("model: {_target_: !!python/name:torch.nn.Linear ''}\n")
    for arguments, message in (
        (["--run", plain_run, "--port", port], f"--port {port}: .*in use"),
        (["--run", plain_run, "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: .*; give another"),
        (["--port", 0, "--run", tmp_path / "empty"], "empty: no config.yaml; give the OUTPUT_DIR of a training"),
        (["--port", 0, "--run", plain_run, "--compare", tmp_path / "none"], "none: no config.yaml"),
        (["--port", 0, "--run", plain_run, "--weights", tmp_path / "none.pth"], r"none\.pth"),
        (
            ["--port", 0, "--run", lazy],
            r"lazy/config\.yaml: it makes Python objects .*, and no code is run from a config",
        ),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_script("serve.py", *arguments)
        assert caught.value.code == 2, arguments
        shown = capsys.readouterr()
        assert shown.out == ""
        assert re.fullmatch(rf"error: .*{message}.*\n", shown.err.splitlines(keepends=True)[-1]), shown.err


class Tool:
    """tools/serve.py as a process of its own, which writes what it likes into one folder."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        folder.mkdir()
        self.errors = folder.with_suffix(".err")
        script = Path(__file__).parents[2] / "tools" / "serve.py"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(script), "--port", "0", *map(str, arguments)],
                cwd=folder,
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": str(folder.parent),
                    "TMPDIR": str(folder),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.said = self.process.stdout.readline()
        self.warnings = self.errors.read_text()

    def __enter__(self) -> "Tool":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def url(self) -> str:
        assert self.said, self.errors.read_text()
        return address(self.said)

    def stop_during_a_picture(self, number: int) -> tuple[int, str]:
        """Exit code, and what it wrote to stderr since it was ready."""
        data = picture(0, (4000, 3000))
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(detect, self.url, data) for _ in range(4)]
            time.sleep(0.2)
            self.process.send_signal(number)
            code = self.process.wait(timeout=30)
        assert any(isinstance(answer.exception(), ConnectionError) for answer in sent)
        assert self.process.stdout.read() == ""
        return code, self.errors.read_text().removeprefix(self.warnings)


@pytest.fixture(scope="module")
def slow_run(se_run, tmp_path_factory) -> Path:
    """The SE run with large pictures, so that each takes a while."""
    folder = tmp_path_factory.mktemp("slow") / "run"
    folder.mkdir()
    config = (se_run / "config.yaml").read_text()
    large = config.replace("MIN_SIZE_TEST: 96", "MIN_SIZE_TEST: 800")
    assert large != config
    (folder / "config.yaml").write_text(large)
    shutil.copy(se_run / "run.json", folder)
    (folder / "model_final.pth").symlink_to(se_run / "model_final.pth")
    return folder


def test_the_tool_with_two_runs_until_ctrl_c(slow_run, plain_run, url, tmp_path) -> None:
    with Tool(tmp_path / "here", "--run", plain_run, "--compare", slow_run) as tool:
        found = without_times(detect(tool.url, picture(1))[1])["runs"]
        expected = without_times(detect(url, picture(1))[1])["runs"]
        # The first is the same as in this process.
        assert found[0]["boxes"] == expected[0]["boxes"]
        assert found[1]["boxes"] != expected[1]["boxes"]
        status, content = detect(tool.url, picture(1), "/gates/1")
        command = f"tools/analyze.py excitations --run {slow_run.name} --no-ablation"
        assert (status, content["error"]) == (
            422,
            f"the map compares with the mean gates, which {command} finds; try again then",
        )
        port = urlsplit(tool.url).port
        for address in other_addresses():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)
        assert [path for path in tool.folder.rglob("*") if path.is_file()] == []
        code, errors = tool.stop_during_a_picture(signal.SIGINT)
    assert (code, errors) == (130, "")
    assert "--host" not in tool.warnings


def test_the_tool_with_one_run_and_other_weights_until_it_is_ended(slow_run, tmp_path) -> None:
    weights = tmp_path / "model_0000009.pth"
    shutil.copy(slow_run / "model_final.pth", weights)
    with Tool(tmp_path / "here", "--run", slow_run, "--weights", weights, "--fuse", "--host", "0.0.0.0") as tool:
        assert b"model_0000009.pth" in ask(tool.url)[1]
        status, content = detect(tool.url, picture(1), "/gates/0")
        assert (status, content["error"]) == (422, f"{slow_run.name}: the detector has no SE gates to look at")
        assert detect(tool.url, picture(1), "/gates/1")[0] == 404
        code, errors = tool.stop_during_a_picture(signal.SIGTERM)
    assert (code, errors) == (143, "")
    assert tool.warnings.splitlines()[-1].startswith("warning: --host 0.0.0.0: whoever reaches port")
