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
    """An image of a page, with a title and a note above it.

    `alt` replaces the image for screen readers; `role` (`baseline` or `candidate`) adds that model's mark.
    """

    source: str
    width: int
    height: int
    alt: str
    title: str = ""
    note: str = ""
    role: str = ""


def embed_image(image: Image.Image, alt: str, *, title: str = "", note: str = "", role: str = "") -> EmbeddedImage:
    """Embeds a photograph, as lossy WebP."""
    content = _webp(image.convert("RGB"), quality=QUALITY, method=6)
    return EmbeddedImage(_data_uri("image/webp", content), image.width, image.height, alt, title, note, role)


def embed_file(path: Path, alt: str, *, title: str = "") -> EmbeddedImage:
    """Embeds a plot: an SVG file unchanged, others as WebP at most 1600 pixels wide, lossless or lossy.

    Raises:
        UserError: the plot can't be read.
    """
    try:
        if path.suffix == ".svg":
            content = path.read_bytes()
            width, height = _svg_size(content)
            return EmbeddedImage(_data_uri("image/svg+xml", content), width, height, alt, title)
        refuse_postscript(path)
        with Image.open(path) as file:
            image = file.convert("RGBA" if "transparency" in file.info or file.mode in ("RGBA", "LA") else "RGB")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the plot can't be read ({error}); make it again, or remove it") from error
    if image.width > MAX_WIDTH:
        size = MAX_WIDTH, max(1, round(image.height * MAX_WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    content = min(_webp(image, lossless=True), _webp(image, quality=PLOT_QUALITY), key=len)
    return EmbeddedImage(_data_uri("image/webp", content), image.width, image.height, alt, title)


def _webp(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _svg_size(content: bytes) -> tuple[int, int]:
    """The width and height of the viewBox in pixels, rounded up."""
    root = re.search(rb"<svg\b[^>]*>", content)
    box = root and re.search(rb"""\bviewBox=["']([^"']+)["']""", root[0])
    sides = [float(side) for side in box[1].replace(b",", b" ").split()[2:]] if box else []
    if len(sides) != 2 or min(sides) <= 0:
        raise ValueError("its svg element has no viewBox")
    return math.ceil(sides[0]), math.ceil(sides[1])
