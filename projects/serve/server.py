"""The server of the page."""

import io
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Any

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from se_detection.engine.signals import handling
from se_detection.errors import UserError

from .app import HEADERS, TryPage
from .detectors import Detectors

# Seconds without data after which a connection is closed.
IDLE_TIMEOUT = 30.0
# Seconds for a whole request to arrive.
REQUEST_TIMEOUT = 60.0


class _TimedReader(io.RawIOBase):
    """Reads from a connection until a deadline; otherwise slow senders could occupy all places."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`.

        Raises:
            TimeoutError: the deadline has passed, or no data came within the connection's timeout.
        """
        idle = self.connection.gettimeout()
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left if idle is None else min(left, idle))
        try:
            return self.connection.recv_into(buffer)
        finally:
            # The deadline does not limit the response.
            self.connection.settimeout(idle)


class _Handler(WSGIRequestHandler):
    timeout = IDLE_TIMEOUT
    request_timeout = REQUEST_TIMEOUT
    # HTTP/0.9 requests also get headers.
    default_request_version = "HTTP/1.1"
    # For requests that http.server refuses.
    error_content_type = "application/json"
    error_message_format = '{"error": "this request is not supported"}'

    def setup(self) -> None:
        """Limits the time to read a request."""
        super().setup()
        self.rfile = io.BufferedReader(_TimedReader(self.connection, time.monotonic() + self.request_timeout))

    def version_string(self) -> str:
        """The Server header, without version numbers."""
        return "se_detection"

    def run_wsgi(self) -> None:
        """Refuses a malformed target, on which werkzeug raises."""
        try:
            super().run_wsgi()
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Logs nothing; werkzeug's own method parses the target."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Logs nothing about clients' errors; the application prints its own tracebacks."""

    def end_headers(self) -> None:
        """Adds the page's headers to every response."""
        for header in HEADERS.items():
            self.send_header(*header)
        super().end_headers()


def listen(host: str, port: int) -> socket.socket:
    """Opens a port; connections wait until :func:`open_server` serves them.

    Args:
        host: an address or name of this machine.
        port: 0 selects a free port.

    Raises:
        UserError: the port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; give another (0 selects a free port)") from error


def open_server(page: TryPage, listener: socket.socket) -> BaseWSGIServer:
    """The server of a listener, with a thread for each request. The listener is closed."""
    # The server uses a duplicate of the socket.
    with listener:
        port = listener.getsockname()[1]
        return make_server(page.host, port, page, threaded=True, request_handler=_Handler, fd=listener.fileno())


def serve(load: Callable[[], Detectors], host: str, port: int) -> None:
    """Serves the page and prints its address. SIGINT or SIGTERM exits with 128 + the signal's number.

    Args:
        load: loads the detectors, after the port is open.
        host: an address or name of this machine.
        port: 0 selects a free port.

    Raises:
        UserError: the port is in use, the host is not an address of this machine, or an error of `load`.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        # A normal exit of Python aborts if a thread has used torch; there is nothing to clean up.
        os._exit(128 + number)

    with handling(stop), listen(host, port) as listener, open_server(TryPage(load(), host), listener) as server:
        if not is_loopback(host):
            print(
                f"warning: --host {host}: everyone who can reach port {server.port} of this machine can send "
                "images; there is no password and no encryption",
                file=sys.stderr,
            )
        print(f"Open {_address(host, server)} in a browser; Ctrl-C stops the server.", flush=True)
        server.serve_forever()


def _address(host: str, server: BaseWSGIServer) -> str:
    if ipaddress.ip_address(str(server.server_address[0])).is_unspecified:
        return f"port {server.port} of any address of this machine"
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{server.port}/"


def is_loopback(host: str) -> bool:
    """Whether a host can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
