"""The page's server: on one port, until a signal ends it."""

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

# How long a browser may send nothing before it is hung up on.
PATIENCE = 30.0
# How long all of a request may take to arrive.
ARRIVAL = 60.0


class _Arriving(io.RawIOBase):
    """What a connection sends until a time; who sends little by little would otherwise keep a place for ever."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.connection = connection
        self.until = until

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`.

        Raises:
            TimeoutError: the time is over, or nothing has come for as long as the connection waits.
        """
        patience = self.connection.gettimeout()
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left if patience is None else min(left, patience))
        try:
            return self.connection.recv_into(buffer)
        finally:
            # The answer has time of its own.
            self.connection.settimeout(patience)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE
    arrival = ARRIVAL
    # Whatever asks has an answer with headers.
    default_request_version = "HTTP/1.1"
    # Of what http.server refuses by itself.
    error_content_type = "application/json"
    error_message_format = '{"error": "this is no request that is understood here"}'

    def setup(self) -> None:
        """Bounds the time of what is read."""
        super().setup()
        self.rfile = io.BufferedReader(_Arriving(self.connection, time.monotonic() + self.arrival))

    def version_string(self) -> str:
        """Names no version of anything."""
        return "se_detection"

    def run_wsgi(self) -> None:
        """Refuses a target that can't be taken apart, which werkzeug would fail at."""
        try:
            super().run_wsgi()
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing; werkzeug's takes the target apart."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Says nothing: what strangers send is no news; of what fails here, the page prints the traceback."""

    def end_headers(self) -> None:
        """Those of the page, whoever answers."""
        for header in HEADERS.items():
            self.send_header(*header)
        super().end_headers()


def listen(host: str, port: int) -> socket.socket:
    """Takes a port; whoever connects waits.

    Args:
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; give another (0 takes a free port)") from error


def open_server(page: TryPage, listener: socket.socket) -> BaseWSGIServer:
    """`serve_forever` answers what :func:`listen` took, each request in a thread; the listener is closed."""
    # The server works on a copy of it.
    with listener:
        port = listener.getsockname()[1]
        return make_server(page.host, port, page, threaded=True, request_handler=_Handler, fd=listener.fileno())


def serve(load: Callable[[], Detectors], host: str, port: int) -> None:
    """Serves the page and says where, until SIGINT or SIGTERM ends the process with 128 + the signal's number.

    Args:
        load: makes the detectors, once the port is taken.
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken, the host is not this machine's, or what `load` raises.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        # At once: on its usual way out Python aborts if a thread has been in torch, and there is nothing to put away.
        os._exit(128 + number)

    with handling(stop), listen(host, port) as listener, open_server(TryPage(load(), host), listener) as server:
        if not is_loopback(host):
            print(
                f"warning: --host {host}: whoever reaches port {server.port} of this machine can send images to "
                "it; there is no password, and nothing is encrypted",
                file=sys.stderr,
            )
        print(f"Open {_where(host, server)} in a browser; Ctrl-C ends this.", flush=True)
        server.serve_forever()


def _where(host: str, server: BaseWSGIServer) -> str:
    if ipaddress.ip_address(str(server.server_address[0])).is_unspecified:
        return f"port {server.port} of any address of this machine"
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{server.port}/"


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what is served there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
