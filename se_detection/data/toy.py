"""The built-in toy set: coloured shapes on soft gradients, in COCO format, made on first use.

It lets every part of the project run in minutes on any machine, without a download. Each class has a shape and two
colours, so that a detector learns it from scratch within two minutes; sizes and tilts are the same for all.
"""

import colorsys
import json
import math
import os
import tempfile
from filecmp import cmpfiles
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import UserError
from .coco_format import Entry, read_coco

Array = NDArray[np.float64]

SPLITS = {"train": 200, "val": 100}
SHAPES = ("circle", "square", "triangle", "cross")
# Increase this when the images change: a set of another version is refused and not mixed with this one.
VERSION = "2"

SIDE = 128
SIZES = (20.0, 60.0)
OBJECTS = (2, 5)
MAX_TILT = math.radians(15)
# The share of an object that must stay visible behind the objects drawn after it.
MIN_VISIBLE = 0.7
OVERSAMPLING = 4
# The two colours of each shape; all are darker or stronger than the backgrounds.
COLOURS = {
    "circle": ((232, 93, 76), (244, 162, 54)),
    "square": ((69, 123, 184), (38, 70, 102)),
    "triangle": ((42, 157, 143), (106, 153, 78)),
    "cross": ((142, 91, 166), (214, 86, 138)),
}
# The distance in RGB between a shape and what is behind and around it.
MIN_CONTRAST = 60
# In HSV: the saturation and value of a background's two colours, and how far apart their hues are.
PALE, BRIGHT, HUE_STEP = (0.06, 0.26), (0.90, 1.0), 0.15


def register_toy(root: Path | str | None = None) -> None:
    """Registers `se_toy_train` and `se_toy_val` with detectron2; a name that is already registered is skipped.

    No files are written here: `DatasetCatalog.get` makes a set that is not on disk. By default, both sets are in
    `se_toy` in `$DETECTRON2_DATASETS` (or `datasets`), as detectron2's built-in sets.
    """
    if root is None:
        root = Path(os.getenv("DETECTRON2_DATASETS", "datasets"), "se_toy")
    folder = Path(root).expanduser()
    for split, count in SPLITS.items():
        name = f"se_toy_{split}"
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, partial(_load, name, folder, split, count))
        MetadataCatalog.get(name).set(
            json_file=str(_annotations(folder, split)),
            image_root=str(folder / split),
            evaluator_type="coco",
            thing_classes=list(SHAPES),
            made_on_first_use=True,
        )


def make_toy_dataset(folder: Path, *, split: str, count: int, seed: int = 0) -> Path:
    """Makes `<folder>/<split>/*.png` and `<folder>/annotations/<split>.json` unless they exist, and returns the latter.

    Images are 128×128 RGB. Boxes, polygons and areas are those of whole shapes, including hidden parts. Image i depends
    only on `split`, `seed` and i. The set is written to a temporary folder and then renamed, the annotations last: they
    mark a complete set. If several processes make the same set at once, all use the one that is complete first.

    Raises:
        UserError: the folder has other files of these names, or cannot be written.
    """
    images, json_file = folder / split, _annotations(folder, split)
    info = {"description": "se_detection toy set", "version": VERSION, "split": split, "count": count, "seed": seed}
    if json_file.exists():
        content = read_coco(json_file)
        if content.get("info") != info:
            wanted = f"version {VERSION}, count {count}, seed {seed}"
            problem = f"{json_file} is not the requested toy set ({wanted})"
            raise UserError("data.other_toy_set", f"{problem}; remove it and {images}, or use another folder")
        if all((images / image["file_name"]).exists() for image in content["images"]):
            return json_file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=folder) as temporary:
            drawn, written = Path(temporary, split), Path(temporary, json_file.name)
            drawn.mkdir()
            written.write_text(json.dumps({"info": info, **_draw_set(drawn, split=split, count=count, seed=seed)}))
            _rename_unless_same(drawn, images)
            json_file.parent.mkdir(exist_ok=True)
            written.replace(json_file)
    except OSError as error:
        advice = "fix this, or set DETECTRON2_DATASETS to a writable folder"
        raise UserError("data.toy_set", f"{folder}: the toy set cannot be written there ({error}); {advice}") from error
    return json_file


def _load(name: str, folder: Path, split: str, count: int) -> list[Entry]:
    json_file = make_toy_dataset(folder, split=split, count=count)
    return load_coco_json(str(json_file), str(folder / split), name)


def _annotations(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"{split}.json"


def _rename_unless_same(drawn: Path, images: Path) -> None:
    """Moves a folder into place, unless another process has put the same images there in the meantime."""
    try:
        drawn.rename(images)
    except OSError as error:
        names = [path.name for path in drawn.iterdir()]
        if len(cmpfiles(drawn, images, names, shallow=False)[0]) < len(names):
            problem = f"{images} exists and does not hold the toy set"
            raise UserError("data.other_toy_set", f"{problem}; remove it, or use another folder") from error


def _draw_set(folder: Path, *, split: str, count: int, seed: int) -> dict[str, list[Entry]]:
    """Writes the images and returns COCO's `images`, `annotations` and `categories`."""
    images: list[Entry] = []
    annotations: list[Entry] = []
    for index in range(count):
        image, objects = _draw_image(np.random.default_rng([seed, index, *split.encode()]))
        file_name = f"{index + 1:06d}.png"
        image.save(folder / file_name)
        images.append({"id": index + 1, "file_name": file_name, "height": SIDE, "width": SIDE})
        for item in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **item})
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _random_object(rng: np.random.Generator) -> tuple[Entry, Array]:
    """A shape in a random place: its annotation without ids, and its corners in pixels, (corners, 2), x before y."""
    category = int(rng.integers(len(SHAPES)))
    turned = _outline(SHAPES[category]) * np.exp(1j * rng.uniform(-MAX_TILT, MAX_TILT))
    corners = np.stack([turned.real, turned.imag], axis=1)
    corners -= corners.min(axis=0)
    corners *= rng.uniform(*SIZES) / corners.max()
    corners += rng.uniform(0, SIDE - corners.max(axis=0))
    corners = corners.round(2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y = corners.T
    annotation = {
        "category_id": category + 1,
        "bbox": np.concatenate([low, high - low]).round(2).tolist(),
        "area": round(abs(float(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1)))) / 2, 2),
        "segmentation": [corners.ravel().tolist()],
        "iscrowd": 0,
    }
    return annotation, corners


def _coverage(corners: Array) -> Array:
    """How much of each pixel lies in a polygon: (SIDE, SIDE), from 0 to 1."""
    canvas = Image.new("L", (OVERSAMPLING * SIDE, OVERSAMPLING * SIDE))
    # Pillow truncates coordinates to integers, which here gives the pixel that a corner lies in.
    ImageDraw.Draw(canvas).polygon((OVERSAMPLING * corners).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLING)) / 255.0


def _outline(shape: str) -> NDArray[np.complex128]:
    """The corners of a shape around the origin, as x + iy with y pointing down."""
    if shape == "cross":
        bar = np.array([-1 + 3j, 1 + 3j, 1 + 1j])
        return np.concatenate([bar, -1j * bar, -bar, 1j * bar])
    corners = {"circle": 48, "square": 4, "triangle": 3}[shape]
    return 1j * np.exp(2j * np.pi * (np.arange(corners) + 0.5) / corners)


def _draw_image(rng: np.random.Generator) -> tuple[Image.Image, list[Entry]]:
    """An image, and the annotations of its objects without ids."""
    pixels = _background(rng)
    objects: list[Entry] = []
    visible: list[Array] = []
    wanted = rng.integers(*OBJECTS, endpoint=True)
    while len(objects) < wanted:
        item, corners = _random_object(rng)
        coverage = _coverage(corners)
        left = [seen * (1 - coverage) for seen in visible]
        if any(seen.sum() < MIN_VISIBLE * other["area"] for seen, other in zip(left, objects, strict=True)):
            continue
        # The colour differs from the surroundings: the box with a margin of a few pixels.
        start, end = (corners.min(axis=0) - 4).clip(0).astype(int), (corners.max(axis=0) + 4).astype(int)
        around = pixels[start[1] : end[1], start[0] : end[0]].reshape(-1, 3)
        colours = np.array(COLOURS[SHAPES[item["category_id"] - 1]], dtype=float)
        contrasts = np.linalg.norm(colours[:, None] - around, axis=2).min(axis=1)
        if contrasts.max() < MIN_CONTRAST:
            continue
        colour = colours[rng.choice(np.flatnonzero(contrasts >= MIN_CONTRAST))]
        pixels += coverage[..., None] * (colour - pixels)
        objects.append(item)
        visible = [*left, coverage]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)), objects


def _background(rng: np.random.Generator) -> Array:
    """A gradient from one pale colour to a related one: (SIDE, SIDE, 3)."""
    hue = rng.uniform()
    start, end = (
        255 * np.array(colorsys.hsv_to_rgb((hue + step) % 1, rng.uniform(*PALE), rng.uniform(*BRIGHT)))
        for step in (0, HUE_STEP)
    )
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : SIDE * 1j, -0.5 : 0.5 : SIDE * 1j]
    gradient = 0.5 + (x * math.cos(direction) + y * math.sin(direction)) / math.sqrt(2)
    return start + gradient[..., None] * (end - start)
