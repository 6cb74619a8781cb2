"""tools/serve.py: its arguments, its address, and how it stops."""

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from se_detection import UserError

from ..server import is_loopback, listen, serve
from .clients import ask, detect, image, other_addresses, wait_until, without_times


def test_the_address_must_be_free_and_of_this_machine() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host 127.0.0.1 --port {port}: .*in use.*; give another \(0"):
            listen("127.0.0.1", port)
        # The port is also in use for all addresses together.
        with pytest.raises(UserError, match="in use"):
            listen("0.0.0.0", port)
        # It is reported before the detectors are loaded.
        with pytest.raises(UserError, match="in use"):
            serve(lambda: pytest.fail("loaded"), "127.0.0.1", port)
    for host, port in (("192.0.2.1", 0), ("a..b", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1), ("2001:db8::1", 0)):
        with pytest.raises(UserError, match=rf"^--host {re.escape(host)} --port {port}: .*; give another"):
            listen(host, port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_loading(number, monkeypatch) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as caught:
        serve(lambda: os.kill(os.getpid(), number), "127.0.0.1", 0)
    assert caught.value.code == 128 + number


def test_werkzeugs_logger_stays_enabled(fake_url) -> None:
    assert ask(fake_url)[0] == 200
    assert not logging.getLogger("werkzeug").disabled


def test_other_addresses_are_refused_by_default(fake_url) -> None:
    port = urlsplit(fake_url).port
    for address in other_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)


def test_loopback_hosts() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.20", "my-machine", "", "localhost.example")))


def address(line: str) -> str:
    """The address in the printed line, without a trailing slash."""
    found = re.fullmatch(
        r"Open (?:(http://\S+:\d+)/|port (\d+) of any \D*) in a browser; Ctrl-C stops the server\.\n", line
    )
    assert found, line
    return found[1] or f"http://127.0.0.1:{found[2]}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_the_address_is_printed_and_a_signal_stops_the_server(fake, host, number, monkeypatch, capfd) -> None:
    if ":" in host:
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    shown, found = [], []

    def visit() -> None:
        try:
            # The line may arrive in parts.
            wait_until(lambda: (shown.append(capfd.readouterr()) or True) and any("\n" in item.out for item in shown))
            found.append(ask(address("".join(item.out for item in shown)))[0])
        finally:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "_exit", sys.exit)
    visitor = threading.Thread(target=visit)
    visitor.start()
    with pytest.raises(SystemExit) as caught:
        serve(lambda: fake, host, 0)
    visitor.join()
    assert caught.value.code == 128 + number
    assert found == [200]
    out, err = ("".join(parts) for parts in zip(*shown, strict=True))
    name = "[::1]" if host == "::1" else host
    where = "port [0-9]+ of any address of this machine" if host == "0.0.0.0" else rf"http://{re.escape(name)}:\d+/"
    assert re.fullmatch(rf"Open {where} in a browser; Ctrl-C stops the server\.\n", out)
    if host == "0.0.0.0":
        assert re.match(
            r"warning: --host 0\.0\.0\.0: everyone who can reach port \d+ of this machine can send images", err
        )
        assert err.count("\n") == 1
    else:
        assert err == ""
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_invalid_arguments_are_reported_in_one_line(fake_url, plain_run, run_script, tmp_path, capsys) -> None:
    port = urlsplit(fake_url).port
    (tmp_path / "empty").mkdir()
    lazy = tmp_path / "lazy"
    lazy.mkdir()
    (lazy / "config.yaml").write_text("model: {_target_: !!python/name:torch.nn.Linear ''}\n")
    for arguments, message in (
        (["--run", plain_run, "--port", port], f"--port {port}: .*in use"),
        (["--run", plain_run, "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: .*; give another"),
        (["--port", 0, "--run", tmp_path / "empty"], "empty: no config.yaml; give the output folder of se-det train"),
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
    """tools/serve.py in its own process; all its files are in one folder."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        folder.mkdir()
        self.errors = folder.with_suffix(".err")
        script = Path(__file__).parents[3] / "tools" / "serve.py"
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
        self.line = self.process.stdout.readline()
        self.warnings = self.errors.read_text()

    def __enter__(self) -> "Tool":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def url(self) -> str:
        assert self.line, self.errors.read_text()
        return address(self.line)

    def stop_during_an_image(self, number: int) -> tuple[int, str]:
        """The exit code, and the output to stderr since the start."""
        data = image(0, (4000, 3000))
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
    """The SE run with large images, which take some time."""
    folder = tmp_path_factory.mktemp("slow") / "run"
    folder.mkdir()
    config = (se_run / "config.yaml").read_text()
    large = config.replace("MIN_SIZE_TEST: 96", "MIN_SIZE_TEST: 800")
    assert large != config
    (folder / "config.yaml").write_text(large)
    shutil.copy(se_run / "run.json", folder)
    (folder / "model_final.pth").symlink_to(se_run / "model_final.pth")
    return folder


def test_two_runs_until_ctrl_c(slow_run, plain_run, url, tmp_path) -> None:
    with Tool(tmp_path / "here", "--run", plain_run, "--compare", slow_run) as tool:
        found = without_times(detect(tool.url, image(1))[1])["runs"]
        expected = without_times(detect(url, image(1))[1])["runs"]
        # The first run is the same as in this process.
        assert found[0]["boxes"] == expected[0]["boxes"]
        assert found[1]["boxes"] != expected[1]["boxes"]
        status, content = detect(tool.url, image(1), "/gates/1")
        command = f"se-det analyze excitations --run {slow_run.name} --no-ablation"
        assert (status, content["error"]) == (
            422,
            f"the map needs the mean gates; run {command}, then try again",
        )
        port = urlsplit(tool.url).port
        for address in other_addresses():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)
        assert [path for path in tool.folder.rglob("*") if path.is_file()] == []
        code, errors = tool.stop_during_an_image(signal.SIGINT)
    assert (code, errors) == (130, "")
    assert "--host" not in tool.warnings


def test_one_run_with_other_weights_until_sigterm(slow_run, tmp_path) -> None:
    weights = tmp_path / "model_0000009.pth"
    shutil.copy(slow_run / "model_final.pth", weights)
    with Tool(tmp_path / "here", "--run", slow_run, "--weights", weights, "--fuse", "--host", "0.0.0.0") as tool:
        assert b"model_0000009.pth" in ask(tool.url)[1]
        status, content = detect(tool.url, image(1), "/gates/0")
        assert (status, content["error"]) == (422, f"{slow_run.name}: the detector has no SE gates")
        assert detect(tool.url, image(1), "/gates/1")[0] == 404
        code, errors = tool.stop_during_an_image(signal.SIGTERM)
    assert (code, errors) == (143, "")
    assert tool.warnings.splitlines()[-1].startswith("warning: --host 0.0.0.0: everyone who can reach port")
