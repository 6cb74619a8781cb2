"""What two detectors see, side by side with the ground truth."""

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageDraw, ImageFont
from pycocotools.coco import COCO

from ..errors import UserError
from .coco_files import load_annotations, load_results
from .runs import Run, read_run

Entry = dict[str, Any]
Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

MIN_SCORE = 0.5
# Panels narrower than this are enlarged, so that names can be read, and wider ones reduced.
PANEL_WIDTH = (640, 800)
TITLE_SIZE, GAP, MARGIN = 16, 8, 2
INK, PAPER = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Pen:
    """How boxes are drawn, in pixels; with a `halo`, a dark line shows them on anything."""

    line: int = 2
    font: int = 12
    halo: int = 0


THIN = Pen()


@dataclass(frozen=True)
class Box:
    """A box as it is drawn: COCO's `[x, y, width, height]`, a label, or none, and the length of its dashes, or 0."""

    place: Sequence[float]
    label: str
    colour: Colour
    dash: int = 0


def draw_side_by_side(
    baseline: Path, candidate: Path, folder: Path, count: int, annotations: Path | None = None
) -> list[Path]:
    """Draws ground truth and both runs' detections of score 0.5 or more for `count` images, spread evenly over the set.

    Args:
        baseline: a run folder, or a bare file of results.
        candidate: the same; one of the two must be a folder, which knows where the images are.
        folder: where the pictures go.
        count: how many.
        annotations: for a bare file.

    Returns:
        The paths of the pictures: `<folder>/<number in the set>_<image name>.png`.

    Raises:
        UserError: a folder is no evaluated run, or an image can't be read.
    """
    runs = read_run(baseline, annotations), read_run(candidate, annotations)
    image_root = runs[0].results.get("image_root") or runs[1].results.get("image_root")
    if image_root is None:
        raise UserError(f"{baseline} and {candidate}: neither names an image folder, so no pictures can be drawn")
    coco = load_annotations(runs[0].annotations)
    colours = category_colours(coco)
    arms = [_by_image(coco.anns.values()), *(_by_image(confident(run, coco)) for run in runs)]
    titles = ["ground truth", f"baseline: {runs[0].arm.name}", f"candidate: {runs[1].arm.name}"]

    folder.mkdir(parents=True, exist_ok=True)
    images = list(coco.imgs.values())
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    paths = []
    for number in chosen:
        image = images[number]
        picture = read_picture(Path(image_root, image["file_name"]))
        width = min(max(picture.width, PANEL_WIDTH[0]), PANEL_WIDTH[1])
        panels = [draw_panel(picture, named_boxes(arm.get(image["id"], []), coco, colours), width) for arm in arms]
        path = folder / f"{number:05d}_{Path(image['file_name']).stem}.png"
        _side_by_side(panels, titles).save(path)
        paths.append(path)
    return paths


def confident(run: Run, coco: COCO) -> list[Entry]:
    """A run's detections of score 0.5 or more."""
    return [item for item in load_results(run.detections, coco, "results") if item["score"] >= MIN_SCORE]


def _by_image(entries: Iterable[Entry]) -> dict[Any, list[Entry]]:
    grouped: dict[Any, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def category_colours(coco: COCO) -> dict[Any, Colour]:
    """Hues a golden section apart: near classes never look alike, however many there are."""
    hues = {category: (0.08 + number * 0.618034) % 1 for number, category in enumerate(sorted(coco.cats))}
    return {category: _from_hue(hue) for category, hue in hues.items()}


def _from_hue(hue: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def read_picture(path: Path) -> Image.Image:
    """An image as detectron2 reads it.

    Raises:
        UserError: it can't be read.
    """
    try:
        return Image.fromarray(read_image(str(path), "RGB"))
    except OSError as error:
        raise UserError(f"{path}: the image can't be read ({error.strerror or error})") from error


def category_name(coco: COCO, category: Any) -> str:
    """A category's name, or its id where it has none."""
    return str(coco.cats[category].get("name", category))


def named_boxes(entries: Iterable[Entry], coco: COCO, colours: dict[Any, Colour]) -> list[Box]:
    """Annotations or detections in their classes' colours, with name and, where they have one, score; best first."""
    return [
        Box(
            entry["bbox"],
            category_name(coco, entry["category_id"]) + (f" {entry['score']:.2f}" if "score" in entry else ""),
            colours[entry["category_id"]],
        )
        for entry in sorted(entries, key=lambda entry: -entry.get("score", 0))
    ]


def draw_panel(picture: Image.Image, boxes: Sequence[Box], width: int, pen: Pen = THIN) -> Image.Image:
    """The picture, enlarged or reduced to a width, under boxes; the first box's label has the best place."""
    scale = width / picture.width
    panel = picture.resize((width, round(picture.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(pen.font)
    places = [[scale * length for length in box.place] for box in boxes]
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


def _draw_rectangle(draw: ImageDraw.ImageDraw, place: Rectangle, box: Box, pen: Pen) -> None:
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


def _side_by_side(panels: list[Image.Image], titles: list[str]) -> Image.Image:
    width, height = panels[0].size
    head = TITLE_SIZE + 2 * GAP
    sheet = Image.new("RGB", (len(panels) * (width + GAP) - GAP, head + height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = number * (width + GAP)
        sheet.paste(panel, (left, head))
        draw.text((left + width / 2, head / 2), title, font=ImageFont.load_default(TITLE_SIZE), fill=INK, anchor="mm")
    return sheet
