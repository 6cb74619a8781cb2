"""The page's server: on one port, until a signal ends it."""

import ipaddress
import logging
import os
import socket
import sys
from http import HTTPStatus
from types import FrameType

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from ..engine.interruption import handling
from ..errors import UserError
from .app import HEADERS, TryPage
from .detectors import Detectors

# How long a browser may send nothing before it is hung up on.
PATIENCE = 30.0


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE
    # Whatever asks has an answer with headers.
    default_request_version = "HTTP/1.1"
    # Of what http.server refuses by itself.
    error_content_type = "application/json"
    error_message_format = '{"error": "this is no request that is understood here"}'

    def run_wsgi(self) -> None:
        """Refuses a target that can't be taken apart, which werkzeug would fail at."""
        try:
            super().run_wsgi()
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing; werkzeug's takes the target apart."""

    def end_headers(self) -> None:
        """Those of the page, whoever answers."""
        for header in HEADERS.items():
            self.send_header(*header)
        super().end_headers()


def open_server(page: TryPage, port: int) -> BaseWSGIServer:
    """Listens at the page's host; `serve_forever` answers, each request in a thread.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in page.host else socket.AF_INET
    try:
        listener = socket.create_server((page.host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"--host {page.host} --port {port}: {error}; give another (0 takes a free port)") from error
    # What strangers send is no news; of what fails here, the page prints the traceback.
    logging.getLogger("werkzeug").disabled = True
    # The server works on a copy of it.
    with listener:
        return make_server(page.host, port, page, threaded=True, request_handler=_Handler, fd=listener.fileno())


def serve(detectors: Detectors, host: str, port: int) -> None:
    """Serves the page and says where, until SIGINT or SIGTERM ends the process with 128 + the signal's number.

    Args:
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken, or the host is not this machine's.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        # At once: on its usual way out Python aborts if a thread has been in torch, and there is nothing to put away.
        os._exit(128 + number)

    with open_server(TryPage(detectors, host), port) as server, handling(stop):
        if not is_loopback(host):
            print(
                f"warning: --host {host}: whoever reaches port {server.port} of this machine can send pictures to "
                "it; there is no password, and nothing is encrypted",
                file=sys.stderr,
            )
        name = f"[{host}]" if ":" in host else host
        print(f"Open http://{name}:{server.port}/ in a browser; Ctrl-C ends this.", flush=True)
        server.serve_forever()


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what is served there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
