"""Small folders of data in the layouts that annotation programs write, each with the quirks of its export."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 200, 100
NAMES = ["car", "bicycle"]
# Class, and left, top, width, height, of the objects of the images a.jpg and b.jpg; c.jpg has none.
OBJECTS = {"a": [(1, (90.0, 40.0, 20.0, 20.0)), (0, (0.0, 50.0, 100.0, 50.0))], "b": [(1, (20.0, 10.0, 60.0, 30.0))]}
EMPTY = "c"


def save_image(path: Path, seed: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def yolo_line(number: int, box: tuple[float, ...]) -> str:
    x, y, w, h = box
    return f"{number} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"


def write_yolo(images: Path, labels: Path) -> None:
    """Images, and the label files of those with objects."""
    labels.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*OBJECTS, EMPTY]):
        save_image(images / f"{name}.jpg", number)
        if name in OBJECTS:
            (labels / f"{name}.txt").write_text("\n".join(yolo_line(*item) for item in OBJECTS[name]) + "\n\n")


def write_voc(images: Path, annotations: Path) -> None:
    annotations.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*OBJECTS, EMPTY]):
        save_image(images / f"{name}.jpg", number)
        things = "".join(
            f"<object><name>{NAMES[kind]}</name><difficult>0</difficult><bndbox><xmin>{x + 1:g}</xmin>"
            f"<ymin>{y + 1:g}</ymin><xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax></bndbox></object>"
            for kind, (x, y, w, h) in OBJECTS.get(name, ())
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}\n{things}</annotation>"
        (annotations / f"{name}.xml").write_text(text)


def coco(*, first_id: int = 1, prefix: str = "", categories: list[dict] | None = None, **keys: object) -> dict:
    """COCO's three lists; ids of images and annotations begin at `first_id`, and annotations also have `keys`."""
    categories = categories or [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    ids = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for name in [*OBJECTS, EMPTY]:
        number = first_id + len(images)
        images.append({"id": number, "file_name": f"{prefix}{name}.jpg", "width": WIDTH, "height": HEIGHT})
        for kind, box in OBJECTS.get(name, ()):
            entry = {"id": first_id + len(annotations), "image_id": number, "category_id": ids[NAMES[kind]]}
            annotations.append({**entry, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0, **keys})
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def write_coco(file: Path, images: Path, content: dict) -> None:
    for number, name in enumerate([*OBJECTS, EMPTY]):
        save_image(images / f"{name}.jpg", number)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
