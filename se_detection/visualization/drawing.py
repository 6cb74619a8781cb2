"""Draws boxes, masks and keypoints on images of any size, and images side by side."""

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
# Images whose longer side has fewer pixels are enlarged, so that the labels are readable.
MIN_LONGER_SIDE = 640
# On large images, font size and line width are the longer side divided by these.
FONT_RATIO, LINE_RATIO = 80, 480
# Boxes are cut off this far outside of an image (pixels), because drawing dashes takes time outside, too.
MAX_OUTSIDE = 4096
MASK_OPACITY = 0.45
# detectron2's threshold for drawing a keypoint.
MIN_KEYPOINT_SCORE = 0.05


@dataclass(frozen=True)
class Pen:
    """Line width and font size in pixels; a `halo` is a dark line around boxes, visible on any background."""

    line: int = 2
    font: int = 12
    halo: int = 0


THIN = Pen()


@dataclass(frozen=True)
class DrawnBox:
    """A box to draw: COCO's `[x, y, width, height]`, a label or "", and the length of its dashes or 0."""

    bbox: Sequence[float]
    label: str
    colour: Colour
    dash: int = 0


def category_colours(coco: COCO) -> dict[Any, Colour]:
    """A colour for each category, with hues a golden ratio apart, so that neighbouring classes look different."""
    hues = {category: (0.08 + number * 0.618034) % 1 for number, category in enumerate(sorted(coco.cats))}
    return {category: _from_hue(hue) for category, hue in hues.items()}


def _from_hue(hue: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_colours(names: dict[int, str]) -> dict[int, Colour]:
    """Like :func:`category_colours`, from names by id."""
    return category_colours(_index(names))


def draw_boxes(
    image: Image.Image,
    entries: Iterable[Entry],
    names: dict[int, str],
    colours: dict[int, Colour],
    *,
    longest: float = math.inf,
) -> Image.Image:
    """Draws boxes with class and score, and the masks and keypoints of detections, on a copy of an image.

    Small images are enlarged; on large images, text and lines are larger.

    Args:
        image: RGB.
        entries: COCO annotations or detections, with boxes in pixels.
        names: the names of the categories by id.
        colours: from :func:`class_colours`.
        longest: the image is reduced if its longer side has more pixels.
    """
    longer = max(image.size)
    shown = min(max(longer, MIN_LONGER_SIDE), longest)
    width = max(round(image.width * shown / longer), 1)
    pen = _pen(shown)
    entries = list(entries)
    # The highest-scoring detection comes last, on top of the others.
    detections = sorted((entry for entry in entries if "score" in entry), key=lambda entry: entry["score"])
    boxes = named_boxes(entries, _index(names), colours)
    panel = draw_panel(_draw_masks(image, detections, colours), boxes, width, pen)
    draw = ImageDraw.Draw(panel)
    for entry in detections:
        for x, y, score in np.reshape(entry.get("keypoints", ()), (-1, 3)):
            if score > MIN_KEYPOINT_SCORE:
                # COCO's keypoints are pixel indices; the centre of a pixel is at + 0.5.
                at = (x + 0.5) * width / image.width, (y + 0.5) * panel.height / image.height
                draw.circle(at, 2 * pen.line, fill=colours[entry["category_id"]], outline=INK, width=pen.line // 2)
    return panel


def _draw_masks(image: Image.Image, detections: Sequence[Entry], colours: dict[int, Colour]) -> Image.Image:
    """The image with the detections' run-length encoded masks; masks of another size are skipped."""
    size = [image.height, image.width]
    codes = ((entry, entry.get("segmentation")) for entry in detections)
    masked = [entry for entry, code in codes if isinstance(code, dict) and code.get("size") == size]
    if not masked:
        return image
    pixels = np.array(image)
    for entry in masked:
        inside = masks.decode(entry["segmentation"]).astype(bool)
        mixed = (1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * np.array(colours[entry["category_id"]])
        pixels[inside] = mixed.round().astype(np.uint8)
    return Image.fromarray(pixels)


def side_by_side(panels: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Images of the same size in a row, with a title above each."""
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
    """The name of a category, or its id if it has no name."""
    return printable(str(coco.cats[category].get("name", category)))


def named_boxes(entries: Iterable[Entry], coco: COCO, colours: dict[Any, Colour]) -> list[DrawnBox]:
    """Boxes of annotations or detections with class, score and the class's colour, highest score first."""
    return [
        DrawnBox(
            entry["bbox"],
            category_name(coco, entry["category_id"]) + (f" {entry['score']:.2f}" if "score" in entry else ""),
            colours[entry["category_id"]],
        )
        for entry in sorted(entries, key=lambda entry: -entry.get("score", 0))
    ]


def draw_panel(image: Image.Image, boxes: Sequence[DrawnBox], width: int, pen: Pen = THIN) -> Image.Image:
    """Resizes an image to a width and draws boxes on it; the labels of the first boxes are placed first."""
    scale = width / image.width
    panel = image.resize((width, max(round(image.height * scale), 1)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(pen.font)
    places = [_scale_box(box.bbox, scale, panel.size) for box in boxes]
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


def _scale_box(bbox: Sequence[float], scale: float, panel: tuple[int, int]) -> list[float]:
    """A box in the pixels of a panel, cut off far outside of it."""
    scaled = [0.0] * 4
    for axis, side in enumerate(panel):
        edges = (scale * bbox[axis], scale * (bbox[axis] + bbox[axis + 2]))
        low, high = (min(max(edge, -MAX_OUTSIDE), side + MAX_OUTSIDE) for edge in edges)
        scaled[axis], scaled[axis + 2] = low, high - low
    return scaled


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
    """A place above, below or in the box, inside the panel, with the least overlap with other labels."""
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
    """Whether the luma (ITU-R BT.601) is high enough for black text."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110


def _index(names: dict[int, str]) -> COCO:
    categories = [{"id": id_, "name": name} for id_, name in names.items()]
    return load_coco({"images": [], "annotations": [], "categories": categories})


def _pen(longer: float) -> Pen:
    """A pen for images with this longer side, never thinner than the default."""
    return Pen(line=max(Pen.line, round(longer / LINE_RATIO)), font=max(Pen.font, round(longer / FONT_RATIO)))
