"""Self-contained HTML pages: verdict first, charts and images inside, no script, nothing fetched."""

from ..files import check_html_file
from .embedded_images import EmbeddedImage, image_from_file, image_from_image
from .inline_charts import chart_style, inline_svg
from .page import Page, render_page, write_page
from .page_blocks import (
    ArmHeading,
    Bars,
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    ImageGrid,
    Interval,
    KeyFigure,
    KeyFigures,
    Name,
    Number,
    Scale,
    Section,
    Table,
    Text,
)

__all__ = [
    "ArmHeading",
    "Bars",
    "Block",
    "Cell",
    "Chart",
    "Charts",
    "Code",
    "EmbeddedImage",
    "ImageGrid",
    "Interval",
    "KeyFigure",
    "KeyFigures",
    "Name",
    "Number",
    "Page",
    "Scale",
    "Section",
    "Table",
    "Text",
    "chart_style",
    "check_html_file",
    "image_from_file",
    "image_from_image",
    "inline_svg",
    "render_page",
    "write_page",
]
