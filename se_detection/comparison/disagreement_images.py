"""Draws the images in which two detectors differ most: the ground truth and the detections of both."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import ImageColor
from pycocotools.coco import COCO

from ..data.coco_format import Entry, image_path
from ..errors import printable
from ..runs.evaluated_run import EvaluatedRun
from ..visualization.drawing import DrawnBox, Pen, class_colours, draw_panel, named_boxes
from ..visualization.embedded_images import EmbeddedImage, embed_image
from .comparison_plots import COLOURS
from .disagreements import Disagreement, most_different
from .result import ROLES
from .side_by_side import read_pixels

COUNT = 6
WIDTH = 640
# The text stays readable at half of this width, as on a phone or in a row of three images.
PEN = Pen(line=4, font=26)
DASH, DOT = 14, 5
# Okabe and Ito's reddish purple and yellow, which differ from the models' colours and from each other.
FALSE, MISSED = (204, 121, 167), (240, 228, 66)


def draw_disagreements(
    disagreements: Sequence[Disagreement], coco: COCO, pair: Sequence[EvaluatedRun]
) -> list[tuple[Disagreement, EmbeddedImage, dict[str, EmbeddedImage]]] | None:
    """Draws the images with the largest leads: the ground truth, and the outcome by role.

    Returns:
        The images; None if neither run has an image folder.

    Raises:
        UserError: an image can't be read.
    """
    roots = [folder for run in pair if (folder := run.results.get("image_root")) and os.path.isdir(folder)]
    if not roots:
        return None
    names = {id_: category["name"] for id_, category in coco.cats.items()}
    drawn = []
    for item in most_different(disagreements, COUNT):
        image = read_pixels(image_path(pair[0].annotations, Path(roots[0]), item.image))
        truth = named_boxes(item.objects, names, class_colours(names))
        if len(names) == 1:
            truth = [replace(box, label="") for box in truth]
        panels = {}
        for role, colour in zip(ROLES, COLOURS, strict=True):
            outcome = getattr(item, role)
            red, green, blue, *_ = ImageColor.getrgb(colour)
            boxes = [
                *(DrawnBox(entry["bbox"], _label(entry, names), FALSE, DASH) for entry in outcome.false),
                *(DrawnBox(entry["bbox"], _label(entry, names), MISSED, DOT) for entry in outcome.missed),
                *(DrawnBox(entry["bbox"], "", (red, green, blue)) for entry in outcome.correct),
            ]
            panels[role] = embed_image(draw_panel(image, boxes, WIDTH, PEN))
        drawn.append((item, embed_image(draw_panel(image, truth, WIDTH, PEN)), panels))
    return drawn


def _label(entry: Entry, names: dict[int, str]) -> str:
    """The class, if there are several, and the score, if there is one."""
    name = printable(names[entry["category_id"]]) if len(names) > 1 else ""
    return f"{name} {entry['score']:.2f}".strip() if "score" in entry else name
