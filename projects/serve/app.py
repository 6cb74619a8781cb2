"""The WSGI application: the page's four files, the boxes of an image, and the map of its gates."""

import ipaddress
import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import urlsplit

from werkzeug import Request, Response
from werkzeug.exceptions import (
    Forbidden,
    HTTPException,
    LengthRequired,
    MethodNotAllowed,
    MisdirectedRequest,
    NotFound,
    RequestEntityTooLarge,
    ServiceUnavailable,
    UnsupportedMediaType,
)

from se_detection.errors import UserError, is_out_of_memory
from se_detection.visualization.page import page_template

from .detectors import Detectors

MEBIBYTES = 32
# Requests at a time: one is processed, the others wait with their images in memory.
MAX_REQUESTS = 4
# Images on the page.
MAX_IMAGES = 20
# Browsers send this type from another site's page only after a preflight request, which is refused.
BODY = "application/octet-stream"
# The server adds these to every response.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HERE = files("projects.serve") / "templates"
REPORT = files("se_detection.visualization") / "templates"


class TryPage:
    """The WSGI application.

    Args:
        detectors: the detectors.
        host: the name or address of the server. Requests for other names are refused, because a site's own name could
            resolve to this machine (DNS rebinding). Addresses and `localhost` are always accepted.
    """

    def __init__(self, detectors: Detectors, host: str) -> None:
        self.detectors = detectors
        self.host = host
        self._free = BoundedSemaphore(MAX_REQUESTS)
        self._files = {
            "/": (_page(detectors), "text/html"),
            "/page.css": ((REPORT / "page.css").read_text("utf-8"), "text/css"),
            "/serve.css": ((HERE / "serve.css").read_text("utf-8"), "text/css"),
            "/serve.js": ((HERE / "serve.js").read_text("utf-8"), "text/javascript"),
        }
        self._work: dict[str, Callable[[bytes], dict[str, Any]]] = {"/detect": detectors.detect}
        for number in range(len(detectors.runs)):
            self._work[f"/gates/{number}"] = partial(detectors.gate_map, number)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answers a request."""
        request = Request(environ)
        request.max_content_length = MEBIBYTES << 20
        try:
            response = self._answer(request)
        except UserError as error:
            response = _json({"error": str(error)}, 422)
        except HTTPException as error:
            response = _json({"error": error.description}, error.code or 500)
            response.headers.extend(item for item in error.get_headers() if item[0] in ("Allow", "Retry-After"))
        except Exception as error:  # out of memory, or a bug; the server continues
            traceback.print_exc()
            response = _json({"error": _public_message(error)}, 500)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        host = request.headers.get("Host", "")
        name = _without_port(host)
        if not (_is_address(name) or name in ("localhost", self.host.lower())):
            raise MisdirectedRequest("this page is not served under that name; use its address")
        if request.path in self._files:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(["GET", "HEAD"], "only GET and HEAD are supported")
            text, kind = self._files[request.path]
            return Response(text, mimetype=kind)
        if request.path not in self._work:
            raise NotFound("there is no such page")
        if request.method != "POST":
            raise MethodNotAllowed(["POST"], "send images with POST")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Forbidden("requests from other sites are not accepted")
        if request.mimetype != BODY:
            raise UnsupportedMediaType(f"send the image's bytes as {BODY}")
        if request.content_length is None:
            raise LengthRequired("the Content-Length header is missing")
        with self._slot():
            try:
                data = request.get_data(cache=False)
            except RequestEntityTooLarge:
                raise RequestEntityTooLarge(f"the file is larger than {MEBIBYTES} MiB; send a smaller one") from None
            return _json(self._work[request.path](data))

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            raise ServiceUnavailable(f"{MAX_REQUESTS} images are waiting already; try again", retry_after=1)
        try:
            yield
        finally:
            self._free.release()


def _public_message(error: Exception) -> str:
    # The error itself may hold details of this machine.
    if is_out_of_memory(error):
        return "the image is too large for this machine's memory; send a smaller one"
    return "internal error; see the server's terminal"


def _without_port(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")


def _page(detectors: Detectors) -> str:
    runs = [
        {"name": name, "gates": detectors.has_gates(number), "weights": predictor.weights.name}
        for number, (name, predictor) in enumerate(zip(detectors.names, detectors.predictors, strict=True))
    ]
    settings = {"runs": runs, "colours": detectors.colours, "mebibytes": MEBIBYTES, "max_images": MAX_IMAGES}
    device = detectors.predictors[0].cfg.MODEL.DEVICE
    return page_template("projects.serve", "serve.html.jinja").render(
        title=" and ".join(detectors.names),
        runs=runs,
        where="a GPU" if device == "cuda" else "the CPU",
        settings=json.dumps(settings),
        mebibytes=MEBIBYTES,
        images=MAX_IMAGES,
    )
