"""Draws the detections of two detectors side by side with the ground truth."""

from pathlib import Path

from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools.coco import COCO

from ..data.coco_files import load_annotations, load_results
from ..data.coco_format import Entry, image_path
from ..data.image_files import reason, refuse_postscript
from ..errors import UserError
from ..runs.evaluated_run import EvaluatedRun, read_run
from ..runs.evaluation_data import spread
from ..visualization.drawing import class_colours, draw_panel, named_boxes, side_by_side
from .matching import group_by

MIN_SCORE = 0.5
# Narrower panels are enlarged, so that the labels are readable, and wider ones are reduced.
PANEL_WIDTH = (640, 800)
# File names hold this many characters of the image's name: up to 240 bytes, and file systems allow 255.
STEM = 60


def draw_side_by_side(
    baseline: Path, candidate: Path, folder: Path, count: int, annotations: Path | None = None
) -> list[Path]:
    """Draws the ground truth and both runs' detections with a score of 0.5 or more, for images spread over the set.

    Args:
        baseline: a run folder, or a COCO results file.
        candidate: as `baseline`; one of the two must be a run folder, which knows the image folder.
        folder: the output folder.
        count: the number of images.
        annotations: COCO instances; needed if `baseline` is a results file.

    Returns:
        The paths of the images: `<folder>/<number in the set>_<image name>.png`.

    Raises:
        UserError: a folder is not an evaluated run, or an image can't be read.
    """
    runs = read_run(baseline, annotations), read_run(candidate, annotations)
    image_root = runs[0].results.get("image_root") or runs[1].results.get("image_root")
    if image_root is None:
        message = f"{baseline} and {candidate}: neither names an image folder; give a run folder to draw images"
        raise UserError("compare.no_images", message)
    coco = load_annotations(runs[0].annotations)
    names = {id_: category["name"] for id_, category in coco.cats.items()}
    colours = class_colours(names)
    shown = [coco.imgToAnns, *(group_by("image_id", confident(run, coco)) for run in runs)]
    titles = ["ground truth", f"baseline: {runs[0].name}", f"candidate: {runs[1].name}"]

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in spread(list(enumerate(coco.imgs.values())), count):
        source = image_path(runs[0].annotations, image_root, image)
        pixels = read_pixels(source)
        width = min(max(pixels.width, PANEL_WIDTH[0]), PANEL_WIDTH[1])
        panels = [draw_panel(pixels, named_boxes(boxes.get(image["id"], []), names, colours), width) for boxes in shown]
        path = folder / f"{number:05d}_{source.stem[:STEM]}.png"
        side_by_side(panels, titles).save(path)
        paths.append(path)
    return paths


def confident(run: EvaluatedRun, coco: COCO) -> list[Entry]:
    """A run's detections with a score of 0.5 or more."""
    return [item for item in load_results(run.detections, coco, "results") if item["score"] >= MIN_SCORE]


def read_pixels(path: Path) -> Image.Image:
    """Reads an image as detectron2 does.

    Raises:
        UserError: it can't be read.
    """
    try:
        refuse_postscript(path)
        return Image.fromarray(read_image(str(path), "RGB"))
    except Exception as error:  # decoders raise many classes, see `data.image_files.decode`
        short = error.strerror if isinstance(error, OSError) else None
        message = f"{path}: the image can't be read ({short or reason(error)})"
        raise UserError("data.bad_image", message) from error
