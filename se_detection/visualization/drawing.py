"""Draws boxes, masks and keypoints on images of any size, and images side by side."""

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as masks

from ..data.coco_format import Entry
from ..errors import printable

Colour = tuple[int, int, int]

GAP = 8
INK, PAPER = (0, 0, 0), (255, 255, 255)
# Images whose longer side has fewer pixels are enlarged, so that the labels are readable.
MIN_LONGER_SIDE = 640
# On large images, font size and line width are the longer side divided by these.
FONT_RATIO, LINE_RATIO = 80, 480
# Corners are moved to within this distance (pixels): OpenCV overflows at 2^31.
FAR = 2**17
MASK_OPACITY = 0.45
# Among more labels there is no space to move one to; searching for it takes seconds.
MOVED_LABELS = 100
# detectron2's threshold for drawing a keypoint.
MIN_KEYPOINT_SCORE = 0.05


@dataclass(frozen=True)
class Pen:
    """Line width and font size in pixels."""

    line: int = 2
    font: int = 12


THIN = Pen()


@dataclass(frozen=True)
class DrawnBox:
    """A box to draw: COCO's `[x, y, width, height]`, a label or "", and the length of its dashes or 0."""

    bbox: Sequence[float]
    label: str
    colour: Colour
    dash: int = 0


def class_colours(categories: Iterable[Any]) -> dict[Any, Colour]:
    """A colour for each category id, with hues a golden ratio apart, so that neighbouring classes look different.

    Black text is readable on each.
    """
    colours = {}
    for number, id_ in enumerate(sorted(categories)):
        red, green, blue = colorsys.hsv_to_rgb((0.08 + number * 0.618034) % 1, 0.55, 1.0)
        colours[id_] = round(255 * red), round(255 * green), round(255 * blue)
    return colours


def draw_boxes(
    image: Image.Image,
    entries: Iterable[Entry],
    names: Mapping[Any, str],
    colours: Mapping[Any, Colour],
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
    pen = _pen(shown)
    entries = list(entries)
    # The highest-scoring detection comes last, on top of the others.
    detections = sorted((entry for entry in entries if "score" in entry), key=lambda entry: entry["score"])
    pixels = np.array(image)
    for entry in detections:
        code = entry.get("segmentation", {})
        if code.get("size") == [image.height, image.width]:
            inside = masks.decode(code).astype(bool)
            colour = np.array(colours[entry["category_id"]])
            pixels[inside] = ((1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * colour).round()
    width = max(round(image.width * shown / longer), 1)
    panel = draw_panel(Image.fromarray(pixels), named_boxes(entries, names, colours), width, pen)
    draw = ImageDraw.Draw(panel)
    for entry in detections:
        for x, y, score in np.reshape(entry.get("keypoints", ()), (-1, 3)):
            if score > MIN_KEYPOINT_SCORE:
                # COCO's keypoints are pixel indices; the centre of a pixel is at + 0.5.
                at = (x + 0.5) * width / image.width, (y + 0.5) * panel.height / image.height
                draw.circle(at, 2 * pen.line, fill=colours[entry["category_id"]], outline=INK, width=pen.line // 2)
    return panel


def named_boxes(entries: Iterable[Entry], names: Mapping[Any, str], colours: Mapping[Any, Colour]) -> list[DrawnBox]:
    """Boxes of annotations or detections with class, score and the class's colour, by rising score."""
    return [
        DrawnBox(
            entry["bbox"],
            printable(names[entry["category_id"]]) + (f" {entry['score']:.2f}" if "score" in entry else ""),
            colours[entry["category_id"]],
        )
        for entry in sorted(entries, key=lambda entry: entry.get("score", 0))
    ]


def draw_panel(image: Image.Image, boxes: Sequence[DrawnBox], width: int, pen: Pen = THIN) -> Image.Image:
    """Resizes an image to a width and draws boxes on it, the last one on top.

    Up to 100 labels are moved apart where they overlap, and into the image.
    """
    # Imported here because it takes half a second.
    import supervision

    scale = width / image.width
    size = width, max(round(image.height * scale), 1)
    panel = np.array(image.resize(size, Image.Resampling.BICUBIC))
    corners = scale * np.reshape([box.bbox for box in boxes], (-1, 4))
    corners[:, 2:] += corners[:, :2] - 1
    corners = corners.clip(-FAR, FAR).round().astype(int)
    for box, (left, top, right, bottom) in zip(boxes, corners.tolist(), strict=True):
        # A dark line around the coloured one makes it visible on any background.
        cv2.rectangle(panel, (left, top), (right, bottom), INK, pen.line + 2)
        dark = panel.copy() if box.dash else panel
        cv2.rectangle(panel, (left, top), (right, bottom), box.colour, pen.line)
        if box.dash:
            gaps = np.add.outer(np.arange(size[1]), np.arange(width)) // box.dash % 2 == 1
            panel[gaps] = dark[gaps]

    labelled = [number for number, box in enumerate(boxes) if box.label]
    annotator = supervision.RichLabelAnnotator(
        supervision.ColorPalette([supervision.Color(*boxes[number].colour) for number in labelled]),
        supervision.ColorLookup.INDEX,
        supervision.Color.BLACK,
        font_size=pen.font,
        text_padding=pen.font // 4,
        smart_position=len(labelled) <= MOVED_LABELS,
    )
    places = supervision.Detections(corners[labelled].astype(np.float32))
    drawn: Image.Image = annotator.annotate(Image.fromarray(panel), places, [boxes[n].label for n in labelled])
    return drawn


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


def _pen(longer: float) -> Pen:
    """A pen for images with this longer side, never thinner than the default."""
    return Pen(line=max(Pen.line, round(longer / LINE_RATIO)), font=max(Pen.font, round(longer / FONT_RATIO)))
