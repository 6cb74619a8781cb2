"""Matplotlib figures as inline SVG: text stays text, and the colours follow the page's light or dark scheme."""

import io
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can distinguish.
BASELINE, CANDIDATE = "#0072B2", "#D55E00"
INK, QUIET, GRID, PAPER = "#000000", "#777777", "#dddddd", "#ffffff"
# The page's colour for each colour of a chart.
PAGE_COLOURS: Mapping[str, str] = {
    BASELINE.lower(): "var(--baseline)",
    CANDIDATE.lower(): "var(--candidate)",
    INK: "currentColor",
    QUIET: "var(--quiet)",
    GRID: "var(--line)",
    PAPER: "var(--surface)",
}
# Points, which become CSS pixels on the narrowest phones, where no text may be smaller than 12 pixels.
WIDTH, FONT_SIZE = 320, 12
SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"


def chart_style() -> AbstractContextManager[None]:
    """A context for drawing and saving charts: one font size, and no formulas in names."""
    return rc_context(
        {
            "font.size": FONT_SIZE,
            "axes.titlesize": FONT_SIZE,
            "text.parse_math": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "",
        }
    )


def inline_svg(figure: Figure, name: str) -> Markup:
    """A figure as an SVG element; the element with the id `<name>-caption` describes it to screen readers.

    Args:
        figure: drawn with :func:`chart_style` in this module's colours, preferably :data:`WIDTH` points wide.
        name: a prefix for the ids, unique on the page.
    """
    buffer = io.BytesIO()
    with chart_style():
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        # The background of a hatch has its colour in an attribute, where CSS variables don't work.
        if fill := element.attrib.pop("fill", None):
            element.set("style", f"fill: {fill}")
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == LINK:
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{name}-"))
            elif key in ("style", "clip-path"):
                coloured = re.sub(r"#[0-9a-f]{6}\b", _page_colour, value)
                element.set(key, coloured.replace("url(#", f"url(#{name}-"))
    width, height = (root.attrib[key].removesuffix("pt") for key in ("width", "height"))
    root.attrib = {
        "class": "chart",
        "role": "img",
        "aria-labelledby": f"{name}-caption",
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _page_colour(found: re.Match[str]) -> str:
    return PAGE_COLOURS.get(found[0], found[0])
