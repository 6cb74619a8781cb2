"""Images as data URIs, with their size, so that a page keeps its layout while they are decoded."""

import base64
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.image_files import refuse_postscript
from ..errors import UserError

QUALITY, PLOT_QUALITY = 80, 90
# Wider images are reduced, because no screen shows more.
MAX_WIDTH = 1600
SUFFIXES = (".png", ".jpg", ".svg")


@dataclass(frozen=True)
class EmbeddedImage:
    """A data URI, and the size of its image in pixels."""

    source: str
    width: int
    height: int


def embed_image(image: Image.Image) -> EmbeddedImage:
    """Embeds a photograph, as lossy WebP."""
    return _embedded("image/webp", _webp(image.convert("RGB"), quality=QUALITY, method=6), *image.size)


def embed_file(path: Path) -> EmbeddedImage:
    """Embeds a plot: an SVG file unchanged, others as WebP at most 1600 pixels wide, lossless or lossy.

    Raises:
        UserError: the plot can't be read.
    """
    try:
        if path.suffix == ".svg":
            content = path.read_bytes()
            return _embedded("image/svg+xml", content, *_svg_size(content))
        refuse_postscript(path)
        with Image.open(path) as file:
            image = file.convert("RGBA" if "transparency" in file.info or file.mode in ("RGBA", "LA") else "RGB")
    except (OSError, ValueError) as error:
        message = f"{path}: the plot can't be read ({error}); make it again, or remove it"
        raise UserError("page.unreadable_plot", message) from error
    if image.width > MAX_WIDTH:
        size = MAX_WIDTH, max(1, round(image.height * MAX_WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    content = min(_webp(image, lossless=True), _webp(image, quality=PLOT_QUALITY), key=len)
    return _embedded("image/webp", content, *image.size)


def _webp(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _embedded(kind: str, content: bytes, width: int, height: int) -> EmbeddedImage:
    return EmbeddedImage(f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}", width, height)


def _svg_size(content: bytes) -> tuple[int, int]:
    """The width and height of the viewBox in pixels, rounded up."""
    root = re.search(rb"<svg\b[^>]*>", content)
    box = root and re.search(rb"""\bviewBox=["']([^"']+)["']""", root[0])
    sides = [float(side) for side in box[1].replace(b",", b" ").split()[2:]] if box else []
    if len(sides) != 2 or min(sides) <= 0:
        raise ValueError("its svg element has no viewBox")
    return math.ceil(sides[0]), math.ceil(sides[1])
