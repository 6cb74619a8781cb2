"""Who asks the page over a network, and what is asked."""

import json
import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

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


def image(seed: int, size: tuple[int, int] = (128, 96), kind: str = "JPEG") -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def other_addresses() -> list[str]:
    """Of this machine: another loopback one, and the one that leads outside, if there is any."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        try:
            outside.connect(("192.0.2.1", 9))
        except OSError:
            return ["127.0.0.2"]
        return ["127.0.0.2", outside.getsockname()[0]]


def without_times(answer: dict) -> dict:
    for run in answer.get("runs", []):
        assert 0 < run.pop("seconds") < 60
    return answer
