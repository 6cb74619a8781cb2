"""Self-contained HTML pages: verdict first, charts and pictures inside, no script, nothing fetched."""

from ..files import check_html_file
from .blocks import (
    ArmHeading,
    Bars,
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    Interval,
    KeyFigure,
    KeyFigures,
    Name,
    Number,
    Pictures,
    Scale,
    Section,
    Table,
    Text,
)
from .charts import chart_style, inline_svg
from .images import Picture, picture_from_file, picture_from_image
from .page import Page, render_page, write_page

__all__ = [
    "ArmHeading",
    "Bars",
    "Block",
    "Cell",
    "Chart",
    "Charts",
    "Code",
    "Interval",
    "KeyFigure",
    "KeyFigures",
    "Name",
    "Number",
    "Page",
    "Picture",
    "Pictures",
    "Scale",
    "Section",
    "Table",
    "Text",
    "chart_style",
    "check_html_file",
    "inline_svg",
    "picture_from_file",
    "picture_from_image",
    "render_page",
    "write_page",
]
