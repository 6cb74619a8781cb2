"""What the page's server answers: four files, the boxes of an image, the map of its gates; all else is refused."""

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
# Of requests: one is worked on, the others wait with their images in memory.
AT_ONCE = 4
# On the page.
SHOWN_AT_MOST = 20
# Browsers ask before they send such a thing from another site's page, and are refused.
BODY = "application/octet-stream"
# Of every answer; the server adds them.
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
        detectors: what images are given to.
        host: the name or address that it is served at. Requests for another name are refused, as a site could have its
            own name lead here (DNS rebinding); addresses and `localhost` are not.
    """

    def __init__(self, detectors: Detectors, host: str) -> None:
        self.detectors = detectors
        self.host = host
        self._free = BoundedSemaphore(AT_ONCE)
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
        """WSGI's call."""
        request = Request(environ)
        request.max_content_length = MEBIBYTES << 20
        try:
            response = self._answer(request)
        except UserError as error:
            response = _json({"error": str(error)}, 422)
        except HTTPException as error:
            response = _json({"error": error.description}, error.code or 500)
            response.headers.extend(item for item in error.get_headers() if item[0] in ("Allow", "Retry-After"))
        except Exception as error:  # a full memory, or a mistake of ours; other images are answered
            traceback.print_exc()
            response = _json({"error": _in_words(error)}, 500)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        host = request.headers.get("Host", "")
        name = _without_port(host)
        if not (_is_address(name) or name in ("localhost", self.host.lower())):
            raise MisdirectedRequest("this page is not served under that name; open it by its address")
        if request.path in self._files:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(["GET", "HEAD"], "this can only be read")
            text, kind = self._files[request.path]
            return Response(text, mimetype=kind)
        if request.path not in self._work:
            raise NotFound("there is no such page")
        if request.method != "POST":
            raise MethodNotAllowed(["POST"], "an image is sent here by POST")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Forbidden("another site's page sent this")
        if request.mimetype != BODY:
            raise UnsupportedMediaType(f"send the image's bytes as {BODY}")
        if request.content_length is None:
            raise LengthRequired("say how long the image is (Content-Length)")
        with self._slot():
            try:
                data = request.get_data(cache=False)
            except RequestEntityTooLarge:
                raise RequestEntityTooLarge(f"the file is larger than {MEBIBYTES} MiB; send a smaller one") from None
            return _json(self._work[request.path](data))

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            raise ServiceUnavailable(f"{AT_ONCE} images are waiting already; try again", retry_after=1)
        try:
            yield
        finally:
            self._free.release()


def _in_words(error: Exception) -> str:
    # The rest may name what strangers needn't know of this machine.
    if is_out_of_memory(error):
        return "the image is too large for this machine's memory; send a smaller one"
    return "it failed; the server's terminal says why"


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
    settings = {"runs": runs, "colours": detectors.colours, "mebibytes": MEBIBYTES, "pictures": SHOWN_AT_MOST}
    device = detectors.predictors[0].cfg.MODEL.DEVICE
    return page_template("projects.serve", "serve.html.jinja").render(
        title=" beside ".join(detectors.names),
        runs=runs,
        where="a GPU" if device == "cuda" else "the CPU",
        settings=json.dumps(settings),
        mebibytes=MEBIBYTES,
        images=SHOWN_AT_MOST,
    )
