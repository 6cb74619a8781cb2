"""A page in the browser to try one or two trained detectors on images of one's own."""

from .app import TryPage
from .detectors import Detectors
from .server import serve

__all__ = ["Detectors", "TryPage", "serve"]
