"""The application, without a network and without detectors."""

import html
import json
import re
import time
from threading import Event, Thread

import pytest
import torch
from werkzeug.test import Client

from se_detection import UserError

from ..app import MAX_IMAGES, MAX_REQUESTS, MEBIBYTES, TryPage

HOST = "127.0.0.1:8000"
BODY = "application/octet-stream"


@pytest.fixture
def page(fake) -> TryPage:
    return TryPage(fake, "my-machine")


@pytest.fixture
def client(page) -> Client:
    return Client(page)


def send(client, path="/detect", data=b"image", **headers):
    headers = {"Host": HOST, "Content-Type": BODY, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return client.post(path, data=data, headers=headers)


def refusal(answer) -> tuple[int, str]:
    assert answer.content_type == "application/json"
    content = json.loads(answer.data)
    assert set(content) == {"error"}
    assert content["error"].isprintable()
    return answer.status_code, content["error"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.css", "text/css"), ("/serve.css", "text/css"), ("/serve.js", "text/javascript")],
)
def test_files_of_the_page(client, path, kind) -> None:
    answer = client.get(path, headers={"Host": HOST})
    assert (answer.status_code, answer.content_type) == (200, f"{kind}; charset=utf-8")
    assert len(answer.data) > 1000
    head = client.head(path, headers={"Host": HOST})
    assert (head.data, head.content_length) == (b"", len(answer.data))


def test_the_page_loads_existing_files_and_has_its_settings(client, fake) -> None:
    text = client.get("/", headers={"Host": HOST}).text
    loaded = re.findall(r'(?:href|src)="(/[^"]*)"', text)
    assert len(loaded) >= 3
    assert all(client.get(path, headers={"Host": HOST}).status_code == 200 for path in loaded)
    # Folder names are escaped.
    assert "<b>" not in text
    settings = json.loads(html.unescape(re.search(r'data-settings="([^"]*)"', text)[1]))
    runs = [{"name": fake.names[0], "gates": False}, {"name": fake.names[1], "gates": True}]
    assert settings == {
        "runs": [{**run, "weights": "model_final.pth"} for run in runs],
        "colours": fake.colours,
        "mebibytes": MEBIBYTES,
        "max_images": MAX_IMAGES,
    }


def test_the_detector_gets_the_whole_image(client, fake) -> None:
    answer = send(client, data=bytes(1000), Origin=f"http://{HOST}")
    assert (answer.status_code, answer.json) == (200, {"runs": []})
    assert send(client, "/gates/1", bytes(MEBIBYTES << 20)).json == {"runs": [], "number": 1}
    assert fake.sizes == [1000, MEBIBYTES << 20]


@pytest.mark.parametrize(
    "name", ["localhost", "LocalHost:8000", "127.0.0.1", "192.168.1.20:80", "[::1]:8000", "My-Machine"]
)
def test_accepted_host_names(client, name) -> None:
    assert send(client, Host=name, Origin=f"http://{name}").status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "my-machine.",
            "[",
        ),
        *(
            "127.0.0.1@evil.example",
            "[::1",
            "127.0.0.1,evil.example",
            "2130706433",
            "[v1.a]",
            "::1]:",
            "\u2100.example",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/", "/detect"])
def test_other_host_names_are_refused(client, fake, name, path) -> None:
    answer = send(client, Host=name) if path == "/detect" else client.get(path, headers={"Host": name})
    assert refusal(answer) == (421, "this page is not served under that name; use its address")
    assert fake.sizes == []


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:8001",
        f"http://{HOST}.evil.example",
        f"http://evil.{HOST}",
        "http://[",
    ],
)
def test_requests_from_other_sites_are_refused(client, fake, origin) -> None:
    assert refusal(send(client, Origin=origin)) == (403, "requests from other sites are not accepted")
    assert fake.sizes == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *((method, "/", "GET, HEAD") for method in ("POST", "PUT", "OPTIONS", "BREW")),
        *((method, "/detect", "POST") for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW")),
        ("GET", "/gates/0", "POST"),
    ],
)
def test_other_methods_are_refused(client, fake, method, path, allowed) -> None:
    answer = client.open(path, method=method, headers={"Host": HOST})
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == set(allowed.split(", "))
    assert method == "HEAD" or refusal(answer)[0] == 405
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert fake.sizes == []


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/nothing",
            "/gates/2",
            "/gates/-1",
            "/gates/",
            "/gates/0/",
            "/detect/",
            "/serve.html.jinja",
            "/../detectors.py",
        ),
        *(
            "/..%2f..%2fsetup.py",
            "/%2e%2e/app.py",
            "//etc/passwd",
            "/serve.css%00.html",
            "/..\\app.py",
            "/%ff%fe",
            "/a" * 999,
        ),
    ],
)
def test_other_paths_do_not_exist(client, fake, path) -> None:
    assert refusal(send(client, path))[0] == 404
    assert fake.sizes == []


@pytest.mark.parametrize(
    "kind",
    ["", "image/jpeg", "text/plain", "multipart/form-data; boundary=a", "application/x-www-form-urlencoded", "\xff"],
)
def test_other_content_types_are_refused(client, fake, kind) -> None:
    assert refusal(send(client, Content_Type=kind)) == (415, f"send the image's bytes as {BODY}")
    assert fake.sizes == []


@pytest.mark.parametrize("length", [(MEBIBYTES << 20) + 1, 10**30])
def test_a_body_that_is_too_long_is_not_read(client, fake, length) -> None:
    class Unread:
        def read(self, *_):
            raise AssertionError

    environ = {"CONTENT_LENGTH": str(length), "wsgi.input": Unread()}
    answer = client.post("/detect", headers={"Host": HOST, "Content-Type": BODY}, environ_overrides=environ)
    assert refusal(answer) == (413, f"the file is larger than {MEBIBYTES} MiB; send a smaller one")
    assert fake.sizes == []


@pytest.mark.parametrize("length", [None, "5"])
def test_a_chunked_body_is_refused(client, fake, length) -> None:
    environ = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True, "CONTENT_LENGTH": length}
    answer = client.post("/detect", headers={"Host": HOST, "Content-Type": BODY}, environ_overrides=environ)
    assert refusal(answer) == (411, "the Content-Length header is missing")
    assert fake.sizes == []


@pytest.mark.parametrize("length", ["many", "-5", "1e3", "0x10"])
def test_a_body_with_an_invalid_length_is_not_read(client, fake, length) -> None:
    answer = client.post(
        "/detect",
        data=b"image",
        headers={"Host": HOST, "Content-Type": BODY},
        environ_overrides={"CONTENT_LENGTH": length},
    )
    assert answer.status_code == 200
    assert fake.sizes == [0]


def test_more_than_four_requests_at_once_are_refused(page, fake) -> None:
    entered, proceed = Event(), Event()
    statuses = []

    def wait() -> None:
        entered.set()
        assert proceed.wait(10)

    def work() -> None:
        statuses.append(send(Client(page)).status_code)

    fake.during = wait
    threads = [Thread(target=work) for _ in range(MAX_REQUESTS)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    # Wait until all places are taken.
    while page._free._value:
        time.sleep(0.001)
    answer = send(Client(page))
    assert refusal(answer) == (503, f"{MAX_REQUESTS} images are waiting already; try again")
    assert answer.headers["Retry-After"] == "1"
    # Other requests do not wait.
    assert Client(page).get("/", headers={"Host": HOST}).status_code == 200
    proceed.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * MAX_REQUESTS
    assert len(fake.sizes) == MAX_REQUESTS


def test_errors_are_one_line_and_free_their_place(client, fake, capsys) -> None:
    def fail(error: Exception) -> None:
        raise error

    fake.during = lambda: fail(UserError("no image\n\x1b[31m"))
    for _ in range(MAX_REQUESTS + 1):
        assert refusal(send(client)) == (422, "no image\\n\\x1b[31m")
    assert capsys.readouterr().err == ""
    fake.during = lambda: fail(RuntimeError("secret"))
    for _ in range(MAX_REQUESTS + 1):
        assert refusal(send(client)) == (500, "internal error; see the server's terminal")
    assert "RuntimeError: secret" in capsys.readouterr().err
    # The response has no details of the machine.
    fake.during = lambda: fail(PermissionError(13, "Permission denied", "/home/someone/run"))
    assert refusal(send(client)) == (500, "internal error; see the server's terminal")
    for full in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        fake.during = lambda full=full: fail(full)
        message = "the image is too large for this machine's memory; send a smaller one"
        assert refusal(send(client)) == (500, message)
    fake.during = lambda: None
    assert send(client).status_code == 200
