import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO

from se_detection.data import toy as module
from se_detection.data.toy import make_toy_dataset, register_toy

from ..helpers import raises

# Smaller than the registered sets, which have 200 and 100 images.
COUNTS = {"train": 50, "val": 30}


def isolate_catalogs(monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})


@pytest.fixture
def empty_catalogs(monkeypatch):
    isolate_catalogs(monkeypatch)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder of both registered sets, and detectron2's dataset dicts of each."""
    root = tmp_path_factory.mktemp("datasets") / "se_toy"
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate_catalogs(monkeypatch)
        monkeypatch.setattr(module, "SPLITS", COUNTS)
        register_toy(root)
        assert not root.exists()
        return root, {split: DatasetCatalog.get(f"se_toy_{split}") for split in COUNTS}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The files of a small set, made without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    make_toy_dataset(folder, split="train", count=4)
    return files(folder)


def make(folder, **options):
    return make_toy_dataset(folder, **{"split": "train", "count": 4, **options})


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(root, split):
    return COCO(root / "annotations" / f"{split}.json")


def test_detectron2_reads_both_sets(toy):
    root, records = toy
    for split, count in COUNTS.items():
        coco = load(root, split)
        assert len(records[split]) == count
        for record in records[split]:
            with Image.open(record["file_name"]) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (128, 128))
                assert (record["width"], record["height"]) == image.size
            # detectron2 counts classes from 0, COCO's categories from 1.
            ours = [(item["bbox"], item["category_id"] + 1, item["bbox_mode"]) for item in record["annotations"]]
            annotations = coco.imgToAnns[record["image_id"]]
            assert ours == [(item["bbox"], item["category_id"], BoxMode.XYWH_ABS) for item in annotations]


@pytest.mark.parametrize("split", COUNTS)
def test_annotations_are_consistent(toy, split):
    coco = load(toy[0], split)
    annotations = coco.dataset["annotations"]
    assert [item["id"] for item in annotations] == list(range(1, len(annotations) + 1))
    assert sorted(coco.imgs) == list(range(1, COUNTS[split] + 1))
    assert {item["image_id"] for item in annotations} == set(coco.imgs)
    assert {item["iscrowd"] for item in annotations} == {0}
    on_disk = sorted(path.name for path in (toy[0] / split).iterdir())
    assert on_disk == sorted(image["file_name"] for image in coco.imgs.values())
    assert {len(coco.imgToAnns[image]) for image in coco.imgs} == {2, 3, 4, 5}
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    assert names == {1: "circle", 2: "square", 3: "triangle", 4: "cross"}
    for category in coco.cats:
        # COCO's bounds of small and medium, in square pixels.
        small = coco.getAnnIds(catIds=category, areaRng=[0, 32**2])
        medium = coco.getAnnIds(catIds=category, areaRng=[32**2, 96**2])
        assert min(len(small), len(medium)) >= 5
    longer = [max(item["bbox"][2:]) for item in coco.anns.values()]
    assert 19.9 < min(longer) < 25
    assert 55 < max(longer) < 60.1


def test_train_and_val_share_no_image(toy):
    pixels = [Image.open(path).tobytes() for split in COUNTS for path in (toy[0] / split).iterdir()]
    assert len(set(pixels)) == sum(COUNTS.values())


def test_boxes_areas_and_categories_match_the_polygons(toy):
    # 4 pi area / perimeter^2 does not depend on size or tilt.
    expected = {"circle": 1, "square": np.pi / 4, "triangle": np.pi / 27**0.5, "cross": 4 * np.pi * 5 / 12**2}
    coco = load(toy[0], "train")
    for item in coco.anns.values():
        corners = np.reshape(item["segmentation"][0], (-1, 2))
        x, y = corners.T
        np.testing.assert_allclose(item["bbox"], [x.min(), y.min(), np.ptp(x), np.ptp(y)], atol=0.006)
        assert min(x.min(), y.min()) >= 0
        assert max(x.max(), y.max()) <= 128
        assert item["area"] == pytest.approx(cv2.contourArea(corners.astype(np.float32)), abs=0.01)
        perimeter = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).sum()
        name = coco.cats[item["category_id"]]["name"]
        assert 4 * np.pi * item["area"] / perimeter**2 == pytest.approx(expected[name], rel=0.01)


def test_boxes_match_the_pixels(toy):
    """Nothing covers the last object of an image, so the pixels of its colour must fill its polygon and box."""
    root, _ = toy
    coco = load(root, "train")
    for image in coco.imgs.values():
        item = coco.imgToAnns[image["id"]][-1]
        pixels = np.asarray(Image.open(root / "train" / image["file_name"]), dtype=float)
        inside = coco.annToMask(item).astype(bool)
        x, y, width, height = item["bbox"]
        column, row = np.arange(128) + 0.5, np.arange(128)[:, None] + 0.5
        near = (x - 3 < column) & (column < x + width + 3) & (y - 3 < row) & (row < y + height + 3)
        coloured = near & (np.linalg.norm(pixels - np.median(pixels[inside], axis=0), axis=2) < 50)
        assert (coloured & inside).sum() / (coloured | inside).sum() > 0.8
        rows, columns = np.nonzero(coloured)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(seen, [x, y, x + width, y + height], atol=2)


def test_objects_overlap_but_stay_half_visible(toy):
    coco = load(toy[0], "train")
    shares = []
    for image in coco.imgs:
        masks = [coco.annToMask(item).astype(bool) for item in coco.imgToAnns[image]]
        for index, mask in enumerate(masks):
            hidden = np.any([np.zeros_like(mask), *masks[index + 1 :]], axis=0)
            shares.append((mask & ~hidden).sum() / mask.sum())
    assert min(shares) > 0.5
    assert np.mean(np.array(shares) < 0.95) > 0.1


def test_images_depend_on_split_seed_and_number(tmp_path, reference):
    json_file = make(tmp_path / "same")
    assert json_file == tmp_path / "same" / "annotations" / "train.json"
    assert files(tmp_path / "same") == reference
    make(tmp_path / "fewer", count=2)
    fewer = {name: content for name, content in files(tmp_path / "fewer").items() if name.endswith(".png")}
    assert len(fewer) == 2
    assert fewer.items() <= reference.items()
    make(tmp_path / "seed", count=2, seed=1)
    make(tmp_path / "split", count=2, split="val")
    assert len({path.read_bytes() for path in tmp_path.rglob("*.png")}) == 8


def test_a_complete_set_is_not_made_again(tmp_path, monkeypatch):
    json_file = make(tmp_path)
    monkeypatch.delattr(Image.Image, "save")
    assert make(tmp_path) == json_file


@pytest.mark.slow
def test_two_processes_make_one_complete_set(tmp_path, reference):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)

    def work():
        barrier.wait()
        make(tmp_path)

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert files(tmp_path) == reference


def test_the_set_of_a_faster_process_is_used(tmp_path, monkeypatch, reference):
    save = Image.Image.save

    def other_process_finishes_first(image, path):
        monkeypatch.setattr(Image.Image, "save", save)
        make(tmp_path)
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", other_process_finishes_first)
    make(tmp_path)
    assert files(tmp_path) == reference


def test_an_interruption_leaves_no_files(tmp_path, monkeypatch):
    save = Image.Image.save

    def interrupted_save(image, path):
        save(image, path)
        if Path(path).name == "000003.png":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted_save)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_set_is_made_again(tmp_path, reference):
    json_file = make(tmp_path)
    # A process was killed between the two renames.
    json_file.unlink()
    make(tmp_path)
    assert files(tmp_path) == reference
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    make(tmp_path)
    assert {name: content for name, content in files(tmp_path).items() if "elsewhere" not in name} == reference


def test_other_files_are_refused_and_kept(tmp_path, monkeypatch, reference):
    make(tmp_path)
    for changed in ({"seed": 1}, {"count": 3}):
        with raises("data.other_toy_set", tmp_path / "annotations" / "train.json", *changed.values()):
            make(tmp_path, **changed)
    monkeypatch.setattr(module, "VERSION", "3")
    with raises("data.other_toy_set", "version 3"):
        make(tmp_path)
    assert files(tmp_path) == reference
    (tmp_path / "annotations" / "train.json").unlink()
    (tmp_path / "train" / "000001.png").write_bytes(b"an image")
    with raises("data.other_toy_set", tmp_path / "train"):
        make(tmp_path)
    assert (tmp_path / "train" / "000001.png").read_bytes() == b"an image"
    (tmp_path / "file").write_text("")
    with raises("data.toy_set", tmp_path / "file" / "se_toy"):
        make(tmp_path / "file" / "se_toy")


@pytest.mark.usefixtures("empty_catalogs")
def test_metadata_is_registered_before_images_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_toy()
    assert sorted(DatasetCatalog) == ["se_toy_train", "se_toy_val"]
    assert MetadataCatalog.get("se_toy_val").as_dict() == {
        "name": "se_toy_val",
        "json_file": str(tmp_path / "se_toy" / "annotations" / "val.json"),
        "image_root": str(tmp_path / "se_toy" / "val"),
        "evaluator_type": "coco",
        "thing_classes": ["circle", "square", "triangle", "cross"],
        "made_on_first_use": True,
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("empty_catalogs")
def test_registering_twice_keeps_the_first(tmp_path):
    register_toy(tmp_path / "first")
    register_toy(str(tmp_path / "second"))
    assert MetadataCatalog.get("se_toy_train").image_root == str(tmp_path / "first" / "train")
