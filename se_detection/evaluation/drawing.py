"""Detections on pictures of any size, and pictures side by side."""

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont
from pycocotools.coco import COCO

from .coco_files import Entry, load_coco
from .pictures import GAP, INK, PAPER, Colour, Pen, category_colours, draw_panel, named_boxes

# A picture whose longer side has fewer pixels is enlarged, so that names can be read.
READABLE = 640
# How many pixels of the longer side each pixel of lettering and of a line is for, on large pictures.
PER_LETTER, PER_LINE = 80, 480


def class_colours(names: dict[int, str]) -> dict[int, Colour]:
    """A colour for each category, given names by id: the same in all pictures, and those of :mod:`pictures`."""
    return category_colours(_index(names))


def draw_boxes(
    picture: Image.Image,
    entries: Iterable[Entry],
    names: dict[int, str],
    colours: dict[int, Colour],
    *,
    longest: float = math.inf,
) -> Image.Image:
    """A picture under boxes with class and score; small ones are enlarged, and on large ones all is larger.

    Args:
        picture: RGB.
        entries: COCO's annotations or detections, their boxes in the picture's pixels.
        names: of the categories.
        colours: of :func:`class_colours`.
        longest: the picture is reduced if its longer side has more pixels than that.
    """
    longer = max(picture.size)
    shown = min(max(longer, READABLE), longest)
    width = max(round(picture.width * shown / longer), 1)
    return draw_panel(picture, named_boxes(entries, _index(names), colours), width, _pen(shown))


def side_by_side(panels: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures of one size in a row, a title above each."""
    width, height = panels[0].size
    size = _pen(max(width, height)).font * 4 // 3
    head = size + 2 * GAP
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, head + height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = number * (width + GAP)
        sheet.paste(panel, (left, head))
        draw.text((left + width / 2, head / 2), title, font=ImageFont.load_default(size), fill=INK, anchor="mm")
    return sheet


def _index(names: dict[int, str]) -> COCO:
    categories = [{"id": id_, "name": name} for id_, name in names.items()]
    return load_coco({"images": [], "annotations": [], "categories": categories})


def _pen(longer: float) -> Pen:
    """As in pictures of 640 pixels, or larger."""
    return Pen(line=max(Pen.line, round(longer / PER_LINE)), font=max(Pen.font, round(longer / PER_LETTER)))
