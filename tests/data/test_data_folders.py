"""Folders in YOLO's, Pascal VOC's and COCO's format, compared with supervision's readers and the boxes written."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as masks

from se_detection.data.coco_sets import check_coco
from se_detection.data.read_folder import find_data
from se_detection.engine.user_data import read_data_folders

from ..helpers import raises
from .exports import EMPTY, HEIGHT, NAMES, OBJECTS, WIDTH, coco, save_image, write_coco, write_voc, write_yolo

YAML = "names: [car, bicycle]\n"
TURNED = Image.Exif()
TURNED[0x0112] = 6


def boxes(content: dict) -> dict[str, list]:
    """Class name and box of the objects, by the stem of the image."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {image["id"]: (Path(image["file_name"].replace("\\", "/")).stem, []) for image in content["images"]}
    for entry in content["annotations"]:
        found[entry["image_id"]][1].append((names[entry["category_id"]], pytest.approx(entry["bbox"], abs=1e-6)))
    return dict(found.values())


WRITTEN = {name: [(NAMES[kind], list(box)) for kind, box in items] for name, items in OBJECTS.items()} | {EMPTY: []}


def roboflow_yolo(folder: Path) -> None:
    for part in ("train", "valid"):
        write_yolo(folder / part / "images", folder / part / "labels")
    (folder / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\nnc: 2\n{YAML}")


def ultralytics(folder: Path) -> None:
    for part in ("train", "val"):
        write_yolo(folder / "images" / part, folder / "labels" / part)
    (folder / "coco8.yaml").write_text(
        "path: elsewhere\ntrain: images/train\nval: [images/val]\nnames: {0: car, 1: bicycle}\n"
    )


def cvat_yolo(folder: Path) -> None:
    """The images are in lists, with a folder before them that the export does not have."""
    for part, name in (("Train", "train"), ("Validation", "val")):
        write_yolo(folder / "images" / name, folder / "labels" / name)
        lines = [f"data/images/{name}/{stem}.jpg\n" for stem in [*OBJECTS, EMPTY]]
        (folder / f"{part}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"path: .\ntrain: Train.txt\nval: Validation.txt\n{YAML}")


def label_studio_yolo(folder: Path) -> None:
    write_yolo(folder / "images", folder / "labels")
    (folder / "classes.txt").write_text("car\nbicycle\n")
    (folder / "notes.json").write_text('{"categories": [], "info": {}}')


def devkit(folder: Path) -> None:
    write_voc(folder / "JPEGImages", folder / "Annotations")
    lists = folder / "ImageSets/Main"
    lists.mkdir(parents=True)
    for part in ("train", "val", "trainval"):
        (lists / f"{part}.txt").write_text("\n".join([*OBJECTS, EMPTY]))
        (lists / f"car_{part}.txt").write_text("a  1\nb -1\n")


def cvat_voc(folder: Path) -> None:
    write_voc(folder / "JPEGImages", folder / "Annotations")
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/default.txt").write_text("a\nb\nc\n")


def roboflow_voc(folder: Path) -> None:
    for part in ("train", "valid"):
        write_voc(folder / part, folder / part)


def label_img(folder: Path) -> None:
    write_voc(folder, folder)


def roboflow_coco(folder: Path) -> None:
    """Ids from 0, and a root category that no object has."""
    categories = [{"id": 0, "name": "things", "supercategory": "none"}]
    categories += [{"id": number, "name": name, "supercategory": "things"} for number, name in enumerate(NAMES, 1)]
    for part in ("train", "valid"):
        content = coco(first_id=0, categories=categories, segmentation=[])
        write_coco(folder / part / "_annotations.coco.json", folder / part, content)


def cvat_coco(folder: Path) -> None:
    """Each mask is a crowd."""
    content = coco(iscrowd=1, attributes={"occluded": False, "rotation": 0.0}, segmentation=[])
    write_coco(folder / "annotations/instances_default.json", folder / "images" / "default", content)


def label_studio_coco(folder: Path) -> None:
    """Ids from 0, also of categories; on Windows with backslashes."""
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    content = coco(first_id=0, prefix="images\\", categories=categories, ignore=0, segmentation=[])
    write_coco(folder / "result.json", folder / "images", content)


def labelme_coco(folder: Path) -> None:
    """labelme's own labelme2coco.py: ids from 0, and the class of the background."""
    categories = [{"id": 0, "name": "_background_", "supercategory": None}]
    categories += [{"id": number, "name": name, "supercategory": None} for number, name in enumerate(NAMES, 1)]
    content = coco(first_id=0, prefix="JPEGImages/", categories=categories)
    write_coco(folder / "annotations.json", folder / "JPEGImages", content)


def coco_2017(folder: Path) -> None:
    for part in ("train", "val"):
        write_coco(folder / f"annotations/instances_{part}2017.json", folder / f"{part}2017", coco())
        (folder / f"annotations/person_keypoints_{part}2017.json").write_text(json.dumps(coco()))


DIVIDED = [roboflow_yolo, ultralytics, cvat_yolo, devkit, roboflow_voc, roboflow_coco, coco_2017]
WHOLE = [label_studio_yolo, cvat_voc, label_img, cvat_coco, label_studio_coco, labelme_coco]


def flags(**given: object) -> Namespace:
    return Namespace(
        **{"train_data": None, "val_data": None, "train_json": [], "val_json": []} | given,
        train_images=[],
        val_images=[],
    )


@pytest.mark.parametrize("export", [*DIVIDED, *WHOLE], ids=lambda export: export.__name__)
def test_an_export_is_read_as_it_comes(tmp_path, export) -> None:
    folder, cache = tmp_path / "my data", tmp_path / "converted"
    folder.mkdir()
    export(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    args = flags(train_data=str(folder), **({} if export in DIVIDED else {"val_data": str(folder)}))
    lines = read_data_folders(args, cache)
    for split in ("train", "val"):
        (json_file,), (images,) = args.__dict__[f"{split}_json"], args.__dict__[f"{split}_images"]
        classes = check_coco(json_file, images, evaluated=split == "val")
        assert [name for name in classes if name in NAMES] == (
            sorted(NAMES) if "voc" in export.__name__ or export in (devkit, label_img) else NAMES
        )
        assert boxes(json.loads(Path(json_file).read_text())) == WRITTEN
    assert len(lines) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # The same content has the same name.
    files = sorted(cache.glob("*")) if cache.exists() else []
    read_data_folders(flags(train_data=str(folder), val_data=str(folder)), cache)
    assert files == (sorted(cache.glob("*")) if cache.exists() else [])


def test_yolo_is_read_as_by_supervision(tmp_path) -> None:
    """With polygons, whose masks may differ on their edges, and an image that EXIF turns."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_yolo(images, labels)
    save_image(images / "turned.jpg", exif=TURNED)
    (labels / "turned.txt").write_text("0 0.5 0.25 0.5 0.125\n")
    (labels / "c.txt").write_text("1 0.1 0.1 0.9 0.2 0.6 0.85 0.15 0.7\n0 0.3 0.3 0.1 0.1 0.9\n")
    (tmp_path / "data.yaml").write_text(YAML)
    content = find_data(tmp_path).read("train").content
    theirs = supervision.DetectionDataset.from_yolo(str(images), str(labels), str(tmp_path / "data.yaml"))
    found = {image["file_name"]: image for image in content["images"]}
    assert (found["turned.jpg"]["width"], found["turned.jpg"]["height"]) == (HEIGHT, WIDTH)
    for path, detections in theirs.annotations.items():
        image = found[Path(path).name]
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in mine)]
        assert np.allclose(np.reshape(corners, (-1, 4)), detections.xyxy, atol=1e-4)
        assert [entry["category_id"] - 1 for entry in mine] == detections.class_id.tolist()
    polygon, box = (entry for entry in content["annotations"] if entry["image_id"] == found["c.jpg"]["id"])
    assert "segmentation" not in box
    (code,) = masks.frPyObjects(polygon["segmentation"], HEIGHT, WIDTH)
    mask = masks.decode(code).astype(bool)
    theirs_mask = theirs.annotations[str(images / "c.jpg")].mask[0]
    assert (mask & theirs_mask).sum() / (mask | theirs_mask).sum() > 0.97
    assert polygon["area"] == pytest.approx(mask.sum(), rel=0.02)


def test_the_keypoints_of_a_pose_are_not_a_polygon(tmp_path) -> None:
    write_yolo(tmp_path / "images", tmp_path / "labels")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 2\n")
    (tmp_path / "data.yaml").write_text(f"kpt_shape: [2, 3]\n{YAML}")
    first = find_data(tmp_path).read("train").content["annotations"][0]
    assert first["bbox"] == pytest.approx([80, 40, 40, 20])
    assert "segmentation" not in first


def test_voc_is_read_as_by_supervision(tmp_path) -> None:
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations")
    file = tmp_path / "Annotations/c.xml"
    # Reversed corners, decimals, a size that the program did not know, and a click without a drag.
    corners = "<xmin>51.5</xmin><ymin>30</ymin><xmax>11</xmax><ymax>20</ymax>"
    click = "<xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>5</ymax>"
    things = "".join(f"<object><name>car</name><bndbox>{text}</bndbox></object>" for text in (corners, click))
    file.write_text(f"<annotation><filename>c</filename><size><width>0</width></size>{things}</annotation>")
    content = find_data(tmp_path).read("train").content
    theirs = supervision.DetectionDataset.from_pascal_voc(str(tmp_path / "JPEGImages"), str(file.parent))
    assert sorted(theirs.classes) == [category["name"] for category in content["categories"]]
    for image in content["images"]:
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
        detections = theirs.annotations[str(tmp_path / "JPEGImages" / image["file_name"])]
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        expected = [box for box in detections.xyxy.tolist() if max(box[2] - box[0], box[3] - box[1]) > 1]
        assert [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in mine)] == expected


def put(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("export", "damage", "code", "named"),
    [
        (
            roboflow_yolo,
            put("train/labels/a.txt", "0 0.5 0.5 0.1 0.1\n\n7 0.5 0.5 0.1 0.1"),
            "data.bad_label",
            ("a.txt:3", "class 7", "0 to 1"),
        ),
        (roboflow_yolo, put("train/labels/a.txt", "0 90 40 20 20"), "data.bad_label", ("a.txt:1", "90")),
        (roboflow_yolo, put("train/labels/a.txt", "0 0.5 0.5 0.1"), "data.bad_label", ("a.txt:1", "3 numbers")),
        (roboflow_yolo, put("train/labels/a.txt", "0 0.5 nan 0.1 0.1"), "data.bad_label", ("a.txt:1", "nan")),
        (roboflow_yolo, put("train/labels/a.txt", "0 0.5 0,5 0.1 0.1"), "data.bad_label", ("a.txt:1", "0,5")),
        (roboflow_yolo, put("train/images/a.jpg", "no image"), "data.bad_image", ("a.jpg",)),
        (
            roboflow_yolo,
            put("data.yaml", f"train: nowhere\nval: valid/images\n{YAML}"),
            "data.no_folder",
            ("data.yaml", "nowhere"),
        ),
        (
            roboflow_yolo,
            put("data.yaml", "train: train/images\nnames: {0: car, 2: bicycle}\n"),
            "data.bad_yaml",
            ("data.yaml", "names"),
        ),
        (
            roboflow_yolo,
            put("data.yaml", f"train: train/images\nkpt_shape: many\n{YAML}"),
            "data.bad_yaml",
            ("data.yaml", "many"),
        ),
        (roboflow_yolo, put("data.yaml", "names: [1"), "config.not_yaml", ("data.yaml",)),
        (roboflow_yolo, put("data.yaml", f"test: valid/images\n{YAML}"), "data.no_part", ("train", "test")),
        (roboflow_yolo, put("data.yaml", f"train: .github\n{YAML}"), "data.no_folder", (".github",)),
        (
            cvat_yolo,
            put("Train.txt", "images/train/a.jpg\nimages/train/z.jpg"),
            "data.missing_images",
            ("Train.txt:2", "z.jpg"),
        ),
        (devkit, put("Annotations/a.xml", "<annotation>\n<object>\n</annotation>"), "data.bad_xml", ("a.xml:3",)),
        (
            devkit,
            put("Annotations/a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>"),
            "data.bad_xml",
            ("a.xml",),
        ),
        (devkit, put("Annotations/a.xml", "<labels></labels>"), "data.bad_xml", ("a.xml", "<labels>")),
        (
            devkit,
            put("Annotations/a.xml", "<annotation><object><name>car</name></object></annotation>"),
            "data.bad_xml",
            ("a.xml", "car", "<xmin>"),
        ),
        (
            devkit,
            put(
                "Annotations/a.xml",
                "<annotation><object><name>car</name><bndbox><xmin>?</xmin></bndbox></object></annotation>",
            ),
            "data.bad_xml",
            ("a.xml: object 1", "xmin", "?"),
        ),
        (devkit, put("ImageSets/Main/train.txt", "a\nz\n"), "data.missing_annotations", ("train.txt:2", "z.xml")),
        (devkit, remove("JPEGImages/a.jpg"), "data.missing_images", ("a.xml", "JPEGImages")),
        (
            coco_2017,
            put("annotations/instances_train2014.json", "{}"),
            "data.several_files",
            ("2014.json", "--train-json"),
        ),
        (label_studio_yolo, remove("classes.txt"), "data.unknown_format", ("data.yaml",)),
    ],
)
def test_faults_are_named_with_file_and_line(tmp_path, export, damage, code, named) -> None:
    export(tmp_path)
    damage(tmp_path)
    with raises(code, *named):
        find_data(tmp_path).read("train")


def test_what_is_missing_or_given_twice(tmp_path) -> None:
    label_studio_yolo(tmp_path)
    for given, code, named in (
        ({"train_data": str(tmp_path)}, "data.not_divided", ["--val-data", tmp_path]),
        ({"train_data": str(tmp_path), "train_json": ["a.json"]}, "run.contradicting_flags", ["--train-json"]),
        ({"val_data": str(tmp_path / "none")}, "data.no_folder", ["none"]),
    ):
        with raises(code, *named):
            read_data_folders(flags(**given), tmp_path / "converted")
    for label in (tmp_path / "labels").iterdir():
        label.unlink()
    with raises("data.no_labels", "3 images", "a.txt"):
        find_data(tmp_path).read("val")


def test_a_coco_file_that_would_lose_entries_is_left_to_the_checks(tmp_path) -> None:
    content = coco()
    content["annotations"][0]["image_id"] = 99
    write_coco(tmp_path / "all.json", tmp_path, content)
    args = flags(val_data=str(tmp_path))
    read_data_folders(args, tmp_path / "converted", ["val"])
    assert args.val_json == [str(tmp_path / "all.json")]
    with raises("data.unknown_id", "99"):
        check_coco(args.val_json[0], args.val_images[0])
