"""Clients of the page's server, and their requests."""

import json
import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

BODY_TYPE = "application/octet-stream"
HOST = b"Host: 127.0.0.1\r\n"
POST = b"POST /detect HTTP/1.1\r\nContent-Type: application/octet-stream\r\n" + HOST


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def raw(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes unchanged; returns status, headers and body of the response."""
    with connect(url) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection, method=request.split()[0].decode("latin1"))
        response.begin()
        return response.status, dict(response.getheaders()), response.read()


def ask(url: str, method: str = "GET", path: str = "/", data: bytes | None = None) -> tuple[int, bytes]:
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.request(method, path, data, {"Content-Type": BODY_TYPE} if data is not None else {})
        response = connection.getresponse()
        return response.status, response.read()
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


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def other_addresses() -> list[str]:
    """Other addresses of this machine: a loopback one, and that of its network interface, if any."""
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
