"""Boxes, masks and keypoints on images of any size, and images side by side."""

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as masks
from pycocotools.coco import COCO

from ..data.coco_files import load_coco
from ..data.coco_format import Entry
from ..errors import printable

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

GAP, MARGIN = 8, 2
INK, PAPER = (0, 0, 0), (255, 255, 255)
# An image whose longer side has fewer pixels is enlarged, so that names can be read.
READABLE = 640
# How many pixels of the longer side each pixel of lettering and of a line is for, on large images.
PER_LETTER, PER_LINE = 80, 480
# Boxes that reach further out of an image are drawn as if they reached so far (pixels): a dash costs time anywhere.
FAR = 4096
# How much of a mask's colour there is in what it covers, and the score from which on detectron2 draws a keypoint.
MASK = 0.45
KEYPOINT = 0.05


@dataclass(frozen=True)
class Pen:
    """How boxes are drawn, in pixels; with a `halo`, a dark line shows them on anything."""

    line: int = 2
    font: int = 12
    halo: int = 0


THIN = Pen()


@dataclass(frozen=True)
class DrawnBox:
    """A box as it is drawn: COCO's `[x, y, width, height]`, a label, or none, and the length of its dashes, or 0."""

    place: Sequence[float]
    label: str
    colour: Colour
    dash: int = 0


def category_colours(coco: COCO) -> dict[Any, Colour]:
    """Hues a golden section apart: near classes never look alike, however many there are."""
    hues = {category: (0.08 + number * 0.618034) % 1 for number, category in enumerate(sorted(coco.cats))}
    return {category: _from_hue(hue) for category, hue in hues.items()}


def _from_hue(hue: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_colours(names: dict[int, str]) -> dict[int, Colour]:
    """:func:`category_colours`, given names by id."""
    return category_colours(_index(names))


def draw_boxes(
    image: Image.Image,
    entries: Iterable[Entry],
    names: dict[int, str],
    colours: dict[int, Colour],
    *,
    longest: float = math.inf,
) -> Image.Image:
    """An image under boxes with class and score; small ones are enlarged, and on large ones all is larger.

    Of detections, masks and keypoints are drawn too, where there are any.

    Args:
        image: RGB.
        entries: COCO's annotations or detections, their boxes in the image's pixels.
        names: of the categories.
        colours: of :func:`class_colours`.
        longest: the image is reduced if its longer side has more pixels than that.
    """
    longer = max(image.size)
    shown = min(max(longer, READABLE), longest)
    width = max(round(image.width * shown / longer), 1)
    pen = _pen(shown)
    entries = list(entries)
    # The surest last, above the others.
    found = sorted((entry for entry in entries if "score" in entry), key=lambda entry: entry["score"])
    panel = draw_panel(_under_masks(image, found, colours), named_boxes(entries, _index(names), colours), width, pen)
    draw = ImageDraw.Draw(panel)
    for entry in found:
        for x, y, score in np.reshape(entry.get("keypoints", ()), (-1, 3)):
            if score > KEYPOINT:
                # COCO's places of keypoints are those of pixels.
                at = (x + 0.5) * width / image.width, (y + 0.5) * panel.height / image.height
                draw.circle(at, 2 * pen.line, fill=colours[entry["category_id"]], outline=INK, width=pen.line // 2)
    return panel


def _under_masks(image: Image.Image, found: Sequence[Entry], colours: dict[int, Colour]) -> Image.Image:
    """The image, coloured where the run-length codes of detections are; codes of another size are left out."""
    size = [image.height, image.width]
    codes = ((entry, entry.get("segmentation")) for entry in found)
    seen = [entry for entry, code in codes if isinstance(code, dict) and code.get("size") == size]
    if not seen:
        return image
    pixels = np.array(image)
    for entry in seen:
        inside = masks.decode(entry["segmentation"]).astype(bool)
        mixed = (1 - MASK) * pixels[inside] + MASK * np.array(colours[entry["category_id"]])
        pixels[inside] = mixed.round().astype(np.uint8)
    return Image.fromarray(pixels)


def side_by_side(panels: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Images of one size in a row, a title above each."""
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


def category_name(coco: COCO, category: Any) -> str:
    """A category's name, or its id where it has none."""
    return printable(str(coco.cats[category].get("name", category)))


def named_boxes(entries: Iterable[Entry], coco: COCO, colours: dict[Any, Colour]) -> list[DrawnBox]:
    """Annotations or detections in their classes' colours, with name and, where they have one, score; best first."""
    return [
        DrawnBox(
            entry["bbox"],
            category_name(coco, entry["category_id"]) + (f" {entry['score']:.2f}" if "score" in entry else ""),
            colours[entry["category_id"]],
        )
        for entry in sorted(entries, key=lambda entry: -entry.get("score", 0))
    ]


def draw_panel(image: Image.Image, boxes: Sequence[DrawnBox], width: int, pen: Pen = THIN) -> Image.Image:
    """The image, enlarged or reduced to a width, under boxes; the first box's label has the best place."""
    scale = width / image.width
    panel = image.resize((width, max(round(image.height * scale), 1)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(pen.font)
    places = [_near(box.place, scale, panel.size) for box in boxes]
    for box, (x, y, w, h) in zip(boxes, places, strict=True):
        _draw_rectangle(draw, (x, y, x + w, y + h), box, pen)
    labels: list[Rectangle] = []
    for box, place in zip(boxes, places, strict=True):
        if not box.label:
            continue
        size = draw.textlength(box.label, font=font) + 2 * MARGIN, pen.font + 2 * MARGIN
        label = _place_label(place, size, panel.size, labels)
        labels.append(label)
        draw.rectangle(label, fill=box.colour)
        centre = (label[0] + label[2]) / 2, (label[1] + label[3]) / 2
        draw.text(centre, box.label, font=font, fill=INK if _is_bright(box.colour) else PAPER, anchor="mm")
    return panel


def _near(place: Sequence[float], scale: float, panel: tuple[int, int]) -> list[float]:
    """A box in a panel's pixels, without what is far outside."""
    near = [0.0] * 4
    for axis, side in enumerate(panel):
        edges = (scale * place[axis], scale * (place[axis] + place[axis + 2]))
        low, high = (min(max(edge, -FAR), side + FAR) for edge in edges)
        near[axis], near[axis + 2] = low, high - low
    return near


def _draw_rectangle(draw: ImageDraw.ImageDraw, place: Rectangle, box: DrawnBox, pen: Pen) -> None:
    left, top, right, bottom = place
    if pen.halo:
        around = (left - pen.halo, top - pen.halo, right + pen.halo, bottom + pen.halo)
        draw.rectangle(around, outline=INK, width=pen.line + 2 * pen.halo)
    if not box.dash:
        draw.rectangle(place, outline=box.colour, width=pen.line)
        return
    for start in np.arange(left, right, 2 * box.dash):
        for y in (top, bottom - pen.line + 1):
            draw.rectangle((start, y, min(start + box.dash - 1, right), y + pen.line - 1), fill=box.colour)
    for start in np.arange(top, bottom, 2 * box.dash):
        for x in (left, right - pen.line + 1):
            draw.rectangle((x, start, x + pen.line - 1, min(start + box.dash - 1, bottom)), fill=box.colour)


def _place_label(
    box: Sequence[float], size: tuple[float, float], panel: tuple[int, int], others: list[Rectangle]
) -> Rectangle:
    """Above or below the box, or in it, inside the panel: the first place where other labels are hidden least."""
    x, y, w, h = box
    right = x + w - size[0]
    places = []
    for left, top in ((x, y - size[1]), (x, y + h), (right, y - size[1]), (right, y + h), (x, y), (right, y)):
        left = max(0, min(left, panel[0] - size[0]))
        top = max(0, min(top, panel[1] - size[1]))
        places.append((left, top, left + size[0], top + size[1]))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in others))


def _overlap(one: Rectangle, other: Rectangle) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _is_bright(colour: Colour) -> bool:
    """By its luma (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110


def _index(names: dict[int, str]) -> COCO:
    categories = [{"id": id_, "name": name} for id_, name in names.items()]
    return load_coco({"images": [], "annotations": [], "categories": categories})


def _pen(longer: float) -> Pen:
    """As in images of 640 pixels, or larger."""
    return Pen(line=max(Pen.line, round(longer / PER_LINE)), font=max(Pen.font, round(longer / PER_LETTER)))
