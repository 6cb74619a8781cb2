"""The images in which two detectors differ most."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageColor
from pycocotools.coco import COCO

from ...data.coco_format import Entry, image_path
from ...runs.evaluated_run import EvaluatedRun
from ...visualization.drawing import DrawnBox, Pen, category_colours, category_name, draw_panel, named_boxes
from ...visualization.embedded_images import EmbeddedImage, embed_image
from ...visualization.page_blocks import Block, ImageGrid, Text
from ..comparison_plots import COLOURS
from ..disagreements import Disagreement, Outcome, find_disagreements, most_different
from ..result import ROLES
from ..side_by_side import confident, read_pixels

COUNT = 6
WIDTH = 640
# The text stays readable at half of this width, as on a phone or in a row of three images.
PEN = Pen(line=4, font=26, halo=1)
DASH, DOT = 14, 5
# Okabe and Ito's reddish purple and yellow, which differ from the models' colours and from each other.
FALSE, MISSED = (204, 121, 167), (240, 228, 66)


def disagreement_blocks(coco: COCO, runs: dict[str, list[EvaluatedRun]]) -> list[Block]:
    """How the images were chosen, and the images: the ground truth and the first run of each model.

    Raises:
        UserError: an image can't be read.
    """
    pair = runs["baseline"][0], runs["candidate"][0]
    disagreements = find_disagreements(coco, *(confident(run, coco) for run in pair))
    chosen = most_different(disagreements, COUNT)
    root = next((folder for run in pair if (folder := _image_root(run)) is not None), None)
    text = f"{_counts(disagreements)} {_choice(len(chosen), several=any(len(own) > 1 for own in runs.values()))}"
    if root is None:
        return [Text(text), Text("No images: the image folder is not available.")]
    return [Text(text), Text(_legend()), *(_images(item, coco, root, pair) for item in chosen)]


def _image_root(run: EvaluatedRun) -> Path | None:
    folder = run.results.get("image_root")
    return Path(folder) if folder and os.path.isdir(folder) else None


def _counts(disagreements: Sequence[Disagreement]) -> str:
    better = sum(item.lead > 0 for item in disagreements)
    worse = sum(item.lead < 0 for item in disagreements)
    same = len(disagreements) - better - worse
    return (
        f"A mistake is a missed object or a false detection; detections with a score of 0.5 or more are matched at "
        f"IoU 0.5. The candidate makes fewer mistakes in {better} images, the baseline in {worse}, and both make the "
        f"same number in {same}."
    )


def _choice(count: int, *, several: bool) -> str:
    if not count:
        return ""
    first = ", for the first run of each" if several else ""
    return f"Shown are the {count} images with the largest leads, alternately in favour of each model{first}."


def _legend() -> str:
    return (
        "Solid boxes in the model's colour are correct detections, dashed purple boxes are false detections, and "
        "dotted yellow boxes are missed objects. Ground-truth boxes have the colours of their classes."
    )


def _images(item: Disagreement, coco: COCO, root: Path, runs: Sequence[EvaluatedRun]) -> ImageGrid:
    image = read_pixels(image_path(runs[0].annotations, root, item.image))
    file_name = item.image["file_name"]
    boxes = named_boxes(item.objects, coco, category_colours(coco))
    if len(coco.cats) == 1:
        boxes = [replace(box, label="") for box in boxes]
    truth = draw_panel(image, boxes, WIDTH, PEN)
    alt = f"{file_name}, ground truth: {_listed(item.objects, coco)}."
    objects = f"{len(item.objects)} {'object' if len(item.objects) == 1 else 'objects'}"
    panels = [embed_image(truth, alt, title="ground truth", note=objects)]
    for role, run, outcome in zip(ROLES, runs, (item.baseline, item.candidate), strict=True):
        panels.append(_panel(image, coco, outcome, role, run.name, file_name))
    winner = ROLES[item.lead > 0]
    mistakes = f"{abs(item.lead)} fewer {'mistake' if abs(item.lead) == 1 else 'mistakes'}"
    return ImageGrid(f"{file_name}: {mistakes} by the {winner}", panels)


def _panel(image: Image.Image, coco: COCO, outcome: Outcome, role: str, name: str, file_name: str) -> EmbeddedImage:
    red, green, blue, *_ = ImageColor.getrgb(COLOURS[ROLES.index(role)])
    boxes = [
        *(DrawnBox(entry["bbox"], _label(entry, coco), FALSE, DASH) for entry in outcome.false),
        *(DrawnBox(entry["bbox"], _label(entry, coco), MISSED, DOT) for entry in outcome.missed),
        *(DrawnBox(entry["bbox"], "", (red, green, blue)) for entry in outcome.correct),
    ]
    counts = f"{len(outcome.correct)} correct, {len(outcome.false)} false, {len(outcome.missed)} missed"
    alt = (
        f"{file_name}, {role} {name}: {counts}. Correct: {_listed(outcome.correct, coco)}. "
        f"False: {_listed(outcome.false, coco)}. Missed: {_listed(outcome.missed, coco)}."
    )
    drawn = draw_panel(image, boxes, WIDTH, PEN)
    return embed_image(drawn, alt, title=f"{role} {name}", note=counts, role=role)


def _label(entry: Entry, coco: COCO) -> str:
    """The class, if there are several, and the score, if there is one."""
    name = category_name(coco, entry["category_id"]) if len(coco.cats) > 1 else ""
    return f"{name} {entry['score']:.2f}".strip() if "score" in entry else name


def _listed(entries: Sequence[Entry], coco: COCO) -> str:
    counted = Counter(category_name(coco, entry["category_id"]) for entry in entries)
    return ", ".join(f"{number} {name}" for name, number in counted.most_common()) or "none"
