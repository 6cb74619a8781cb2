"""The page of the demo: its handlers in this process, its server, and the page in a browser."""

import asyncio
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from se_detection.inference.image_array import image_array
from se_detection_cli.main import command_parser
from tests.helpers import raises
from tests.inference.small_runs import CLASSES, image

from .. import serve_command

pytestmark = [
    # Importing Gradio takes seconds.
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None,
        reason="these tests need Gradio: pip install 'se_detection[demo]'",
    ),
]


@pytest.fixture(autouse=True)
def _own_log_handlers(monkeypatch) -> None:
    """uvicorn closes all handlers of logs, and absl's closes the stream of pytest that it has."""
    monkeypatch.setattr(logging, "_handlerList", [])


@pytest.fixture
def demo() -> ModuleType:
    """The module: importing Gradio takes seconds, in every process of the tests."""
    return importlib.import_module("projects.serve.demo")


@pytest.fixture
def photo(tmp_path) -> Path:
    """A photo of a camera that was turned: 128 pixels high and 96 wide, as EXIF says."""
    path = tmp_path / "street.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(image(96, 128)[:, :, ::-1]).save(path, exif=turned)
    return path


def test_an_image_is_shown_with_what_each_detector_finds(demo, detectors, photo) -> None:
    found, *shown, no_map = demo.show_image(detectors, 1, str(photo), 0.0)
    assert no_map is None
    pixels = image_array(photo, "BGR", "BGR")
    for number, detector in enumerate(detectors):
        entries, seconds = found[1][number]
        assert [entry["bbox"] for entry in entries] == [entry["bbox"] for entry in detector.detect(pixels)[0]]
        line, drawn, rows = shown[3 * number : 3 * number + 3]
        assert drawn.size == (480, 640)
        assert line.startswith(f"{1000 * seconds:.0f} ms, {len(entries)} detections, ")
        counts = {name: int(count) for name, count in re.findall(r", (\w+) (\d+)", line)}
        names = [CLASSES[entry["category_id"]] for entry in entries]
        assert counts == {name: names.count(name) for name in sorted(set(names))}
        x, y, width, height = entries[0]["bbox"]
        assert rows[0] == [names[0], *(round(value, 2) for value in (entries[0]["score"], x, y, x + width, y + height))]


def test_the_gates_of_an_uploaded_image_are_shown(demo, detectors, photo) -> None:
    shown = demo.show_gates(detectors[1], str(photo))
    assert shown.tobytes() == detectors[1].gate_map(image_array(photo, "BGR", "BGR")).tobytes()


def test_the_score_redraws_without_the_network(demo, detectors, photo, monkeypatch) -> None:
    found, _, all_drawn, *_ = demo.show_image(detectors, 0, str(photo), 0.0)
    for detector in detectors:
        monkeypatch.setattr(detector, "predictor", None)
    scores = [entry["score"] for entry in found[1][0][0]]
    line, drawn, rows, *_ = demo.show_found(detectors, found, scores[1])
    kept = sum(score >= scores[1] for score in scores)
    assert 2 <= kept == len(rows) < len(scores)
    assert f" {kept} detections, " in line
    assert drawn.tobytes() != all_drawn.tobytes()
    assert demo.show_found(detectors, found, 1.0)[0].endswith(" ms, 0 detections")


def test_nothing_is_shown_before_there_is_an_image(demo, detectors) -> None:
    assert demo.show_found(detectors, None, 0.5) == demo.gr.skip()
    assert demo.show_gates(detectors[1], None) is None


def connected(demo, handler):
    """The function that Gradio calls for a handler."""
    events = []
    demo._connect(lambda handle, *args, **options: events.append((handle, options)), handler, [], [])
    ((handle, options),) = events
    assert options["concurrency_limit"] == 1
    return handle


def test_an_error_is_a_line_without_paths_of_the_server(demo, detectors, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    file = tmp_path / "0a1f" / "<b>.jpg"
    file.parent.mkdir()
    file.write_text("no image")
    with pytest.raises(demo.gr.Error) as caught:
        connected(demo, lambda: demo.show_image(detectors, 0, str(file), 0.5))()
    assert caught.value.message.startswith("&lt;b&gt;.jpg can&#x27;t be used: ")
    assert str(tmp_path) not in caught.value.message
    assert caught.value.message.isprintable()
    # A mistake of the program.
    with pytest.raises(ZeroDivisionError):
        connected(demo, lambda: 1 / 0)()


def test_only_uploaded_files_are_read(demo, detectors, tmp_path, monkeypatch) -> None:
    from gradio.context import LocalContext
    from gradio.exceptions import InvalidPathError
    from gradio.processing_utils import async_move_files_to_cache

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    blocks = demo.build_demo(detectors)
    blocks.has_launched, blocks.allowed_paths, blocks.blocked_paths = True, [], []
    (upload,) = (block for block in blocks.blocks.values() if isinstance(block, demo.gr.File))

    async def named(path: object) -> object:
        LocalContext.blocks.set(blocks)
        data = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        return (await async_move_files_to_cache(data, upload, check_in_upload_folder=True))["path"]

    with pytest.raises(demo.gr.Error, match="not an uploaded image"):
        asyncio.run(named("https://se-detection.invalid/image.jpg"))
    with pytest.raises(InvalidPathError):
        asyncio.run(named(__file__))
    (tmp_path / "image.jpg").touch()
    assert asyncio.run(named(tmp_path / "image.jpg")) == str(tmp_path / "image.jpg")


def test_the_address_is_checked_before_the_detectors_are_loaded(demo) -> None:
    args = command_parser(serve_command).parse_args(["--run", "R"])
    assert (args.host, args.port) == ("127.0.0.1", 8000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with raises("serve.address", f"--host 127.0.0.1 --port {port}", "in use"):
            demo.serve(pytest.fail, "127.0.0.1", port)
    for host, port in (("192.0.2.1", 0), ("a..b", 0), ("127.0.0.1", 65536)):
        with raises("serve.address", host, port):
            demo.serve(pytest.fail, host, port)


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.delitem(sys.modules, "projects.serve.demo", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with raises("demo.no_gradio", "gradio", "se_detection[demo]"):
        serve_command.run(command_parser(serve_command).parse_args(["--run", "R"]))


def status(url: str, host: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host})).status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_serves_until_a_signal(folder, run_script, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setattr(os, "_exit", sys.exit)
    out, err, seen = [], [], []

    def visit() -> None:
        try:
            while "Ctrl-C" not in "".join(out):
                time.sleep(0.05)
                for parts, part in zip((out, err), capfd.readouterr(), strict=True):
                    parts.append(part)
            port = re.search(r"Open http://localhost:(\d+)/ in", "".join(out))[1]
            seen.extend(status(f"http://{address}:{port}", "any.example") for address in ("127.0.0.1", "127.0.0.2"))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    with pytest.raises(SystemExit) as caught:
        run_script("serve.py", "--run", folder / "R", "--compare", folder / "SE_R", "--host", "0.0.0.0", "--port", 0)
    visitor.join()
    assert caught.value.code == 128 + signal.SIGTERM
    assert seen == [200, 200]
    assert "warning: --host 0.0.0.0: everyone who can reach port" in "".join(err)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert list(tmp_path.iterdir()) == []


def test_the_page_in_a_browser(demo, detectors, photo, chromium, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    blocks = demo.build_demo(detectors)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    demo.launch(blocks, "127.0.0.1", port)
    # Only for this machine, under its own name.
    assert (status(blocks.local_url, "localhost"), status(blocks.local_url, "evil.example")) == (200, 400)
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) != 0
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    asked, logged = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: logged.append(message) if message.type == "error" else None)
    try:
        page.goto(blocks.local_url)
        page.get_by_role("spinbutton").fill("0")
        page.locator("input[type=file]").set_input_files(photo)
        line = page.get_by_label(str(detectors[1].run), exact=True)
        page.wait_for_function("document.querySelectorAll('img').length == 2")
        assert re.search(r"^\d+ ms, 30 detections, ", line.input_value())
        monkeypatch.setattr(detectors[1], "detect", None)
        page.get_by_role("spinbutton").fill("1")
        page.get_by_role("spinbutton").press("Enter")
        while not line.input_value().endswith(" 0 detections"):
            page.wait_for_timeout(50)
        page.get_by_role("button", name="Show", exact=True).click()
        page.wait_for_function("document.querySelectorAll('img').length == 3")
        page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
        page.wait_for_function("document.querySelectorAll('img').length == 0")
        (tmp_path / "text.png").write_text("no image")
        page.locator("input[type=file]").set_input_files(tmp_path / "text.png")
        message = page.get_by_text("text.png can't be used").first
        assert str(tmp_path) not in message.text_content()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    finally:
        page.close()
        blocks.close()
    assert {url.split("/")[2] for url in asked if not url.startswith(("data:", "blob:"))} == {f"127.0.0.1:{port}"}
    assert logged == []
