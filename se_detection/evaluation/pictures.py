"""What two detectors see, side by side with the ground truth."""

import colorsys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from .coco_files import load_annotations, load_results
from .runs import Run, read_run

Entry = dict[str, Any]
Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

MIN_SCORE = 0.5
# Panels narrower than this are enlarged, so that names can be read, and wider ones reduced.
PANEL_WIDTH = (640, 800)
FONT_SIZE, TITLE_SIZE, GAP, MARGIN, LINE = 12, 16, 8, 2, 2
INK, PAPER = (0, 0, 0), (255, 255, 255)


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
    colours = {category: _colour(number) for number, category in enumerate(sorted(coco.cats))}
    arms = [_by_image(coco.anns.values()), *(_by_image(_confident(run, coco)) for run in runs)]
    titles = ["ground truth", f"baseline: {runs[0].arm.name}", f"candidate: {runs[1].arm.name}"]

    folder.mkdir(parents=True, exist_ok=True)
    images = list(coco.imgs.values())
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    paths = []
    for number in chosen:
        image = images[number]
        picture = _read(Path(image_root, image["file_name"]))
        panels = [_draw_boxes(picture, arm.get(image["id"], []), coco.cats, colours) for arm in arms]
        path = folder / f"{number:05d}_{Path(image['file_name']).stem}.png"
        _side_by_side(panels, titles).save(path)
        paths.append(path)
    return paths


def _confident(run: Run, coco: Any) -> list[Entry]:
    return [item for item in load_results(run.detections, coco, "results") if item["score"] >= MIN_SCORE]


def _by_image(entries: Iterable[Entry]) -> dict[Any, list[Entry]]:
    grouped: dict[Any, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _colour(number: int) -> Colour:
    """Hues a golden section apart: near classes never look alike, however many there are."""
    red, green, blue = colorsys.hsv_to_rgb((0.08 + number * 0.618034) % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _read(path: Path) -> Image.Image:
    try:
        return Image.fromarray(read_image(str(path), "RGB"))
    except OSError as error:
        raise UserError(f"{path}: the image can't be read ({error.strerror or error})") from error


def _draw_boxes(
    picture: Image.Image, entries: list[Entry], categories: dict[Any, Entry], colours: dict[Any, Colour]
) -> Image.Image:
    """A panel: the picture, enlarged or reduced, under boxes with their class and, where they have one, score."""
    width = min(max(picture.width, PANEL_WIDTH[0]), PANEL_WIDTH[1])
    scale = width / picture.width
    panel = picture.resize((width, round(picture.height * scale)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(FONT_SIZE)
    boxes = [([scale * length for length in entry["bbox"]], entry) for entry in entries]
    for (x, y, w, h), entry in boxes:
        draw.rectangle((x, y, x + w, y + h), outline=colours[entry["category_id"]], width=LINE)
    labels: list[Rectangle] = []
    for box, entry in sorted(boxes, key=lambda item: -item[1].get("score", 0)):
        text = categories[entry["category_id"]]["name"] + (f" {entry['score']:.2f}" if "score" in entry else "")
        size = draw.textlength(text, font=font) + 2 * MARGIN, FONT_SIZE + 2 * MARGIN
        label = _place_label(box, size, panel.size, labels)
        labels.append(label)
        colour = colours[entry["category_id"]]
        draw.rectangle(label, fill=colour)
        centre = (label[0] + label[2]) / 2, (label[1] + label[3]) / 2
        draw.text(centre, text, font=font, fill=INK if _is_bright(colour) else PAPER, anchor="mm")
    return panel


def _place_label(
    box: list[float], size: tuple[float, float], panel: tuple[int, int], others: list[Rectangle]
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
