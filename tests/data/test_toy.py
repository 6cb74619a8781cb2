import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO

from se_detection.data.toy import make_toy_dataset, register_toy
from se_detection.errors import UserError

COUNTS = {"train": 200, "val": 80}


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
        register_toy(root)
        assert not root.exists()
        return root, {split: DatasetCatalog.get(f"se_toy_{split}") for split in COUNTS}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The files of a small set, made without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    make_toy_dataset(folder, split="train", count=6)
    return files(folder)


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
            assert {item["bbox_mode"] for item in record["annotations"]} == {BoxMode.XYWH_ABS}
            annotations = coco.imgToAnns[record["image_id"]]
            assert [item["bbox"] for item in record["annotations"]] == [item["bbox"] for item in annotations]
            # detectron2 counts classes from 0, COCO's categories from 1.
            assert [item["category_id"] + 1 for item in record["annotations"]] == [
                item["category_id"] for item in annotations
            ]


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
    assert all(2 <= len(coco.imgToAnns[image]) <= 6 for image in coco.imgs)


@pytest.mark.parametrize("split", COUNTS)
def test_every_class_has_small_and_medium_objects(toy, split):
    coco = load(toy[0], split)
    assert {category["id"]: category["name"] for category in coco.dataset["categories"]} == {
        1: "circle",
        2: "square",
        3: "triangle",
        4: "cross",
    }
    for category in coco.cats:
        # COCO's bounds of small and medium, in square pixels.
        small = coco.getAnnIds(catIds=category, areaRng=[0, 32**2])
        medium = coco.getAnnIds(catIds=category, areaRng=[32**2, 96**2])
        assert min(len(small), len(medium)) >= 10
    longer = [max(item["bbox"][2:]) for item in coco.anns.values()]
    assert 13.9 < min(longer) < 20
    assert 58 < max(longer) < 64.1


def test_train_and_val_share_no_image(toy):
    pixels = [Image.open(path).tobytes() for split in COUNTS for path in (toy[0] / split).iterdir()]
    assert len(set(pixels)) == sum(COUNTS.values())


def test_boxes_and_areas_match_the_polygons(toy):
    coco = load(toy[0], "train")
    for item in coco.anns.values():
        corners = np.reshape(item["segmentation"][0], (-1, 2))
        x, y = corners.T
        np.testing.assert_allclose(item["bbox"], [x.min(), y.min(), np.ptp(x), np.ptp(y)], atol=0.006)
        assert min(x.min(), y.min()) >= 0
        assert max(x.max(), y.max()) <= 128
        assert item["area"] == pytest.approx(cv2.contourArea(corners.astype(np.float32)), abs=0.01)


def test_categories_match_the_shapes(toy):
    # 4 pi area / perimeter^2 does not depend on size or tilt.
    expected = {"circle": 1, "square": np.pi / 4, "triangle": np.pi / 27**0.5, "cross": 4 * np.pi * 5 / 12**2}
    coco = load(toy[0], "train")
    for item in coco.anns.values():
        corners = np.reshape(item["segmentation"][0], (-1, 2))
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


def test_the_same_seed_gives_the_same_bytes(tmp_path, reference):
    make_toy_dataset(tmp_path, split="train", count=6)
    assert files(tmp_path) == reference


def test_another_seed_or_split_gives_other_images(tmp_path, reference):
    make_toy_dataset(tmp_path / "seed", split="train", count=6, seed=1)
    make_toy_dataset(tmp_path / "split", split="val", count=6)
    images = [content for name, content in reference.items() if name.endswith(".png")]
    images += [path.read_bytes() for path in tmp_path.rglob("*.png")]
    assert len(set(images)) == 18


def test_an_image_does_not_depend_on_the_others(tmp_path, reference):
    make_toy_dataset(tmp_path, split="train", count=3)
    images = {name: content for name, content in files(tmp_path).items() if name.endswith(".png")}
    assert len(images) == 3
    assert images.items() <= reference.items()


def test_a_complete_set_is_not_made_again(tmp_path, monkeypatch):
    json_file = make_toy_dataset(tmp_path, split="train", count=2)
    monkeypatch.delattr(Image.Image, "save")
    assert make_toy_dataset(tmp_path, split="train", count=2) == json_file == tmp_path / "annotations" / "train.json"


def test_two_processes_make_one_complete_set(tmp_path, reference):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)

    def work():
        barrier.wait()
        make_toy_dataset(tmp_path, split="train", count=6)

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
        make_toy_dataset(tmp_path, split="train", count=6)
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", other_process_finishes_first)
    make_toy_dataset(tmp_path, split="train", count=6)
    assert files(tmp_path) == reference


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError()])
def test_an_interruption_leaves_no_files(tmp_path, monkeypatch, reference, error):
    save = Image.Image.save

    def interrupted_save(image, path):
        save(image, path)
        if Path(path).name == "000003.png":
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted_save)
        with pytest.raises(type(error)):
            make_toy_dataset(tmp_path, split="train", count=6)
    assert list(tmp_path.iterdir()) == []
    make_toy_dataset(tmp_path, split="train", count=6)
    assert files(tmp_path) == reference


def test_images_without_annotations_are_replaced(tmp_path, reference):
    """A process was killed between the two renames."""
    json_file = make_toy_dataset(tmp_path, split="train", count=6)
    json_file.unlink()
    make_toy_dataset(tmp_path, split="train", count=6)
    assert files(tmp_path) == reference


def test_missing_images_are_made_again(tmp_path, reference):
    make_toy_dataset(tmp_path, split="train", count=6)
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    make_toy_dataset(tmp_path, split="train", count=6)
    assert {name: content for name, content in files(tmp_path).items() if "elsewhere" not in name} == reference


def test_a_set_of_another_seed_is_refused_and_kept(tmp_path, reference):
    make_toy_dataset(tmp_path, split="train", count=6)
    with pytest.raises(UserError, match=r"annotations/train\.json is not the requested toy set .*seed 1.*remove"):
        make_toy_dataset(tmp_path, split="train", count=6, seed=1)
    assert files(tmp_path) == reference


@pytest.mark.parametrize("content", ["", '{"images": []}'])
def test_other_annotations_are_refused_and_kept(tmp_path, content):
    json_file = tmp_path / "annotations" / "train.json"
    json_file.parent.mkdir()
    json_file.write_text(content)
    with pytest.raises(UserError, match="is not the requested toy set"):
        make_toy_dataset(tmp_path, split="train", count=2)
    assert files(tmp_path) == {"annotations/train.json": content.encode()}


def test_other_images_are_refused_and_kept(tmp_path):
    own = tmp_path / "train" / "000001.png"
    own.parent.mkdir()
    own.write_bytes(b"an image")
    with pytest.raises(UserError, match="train exists and does not hold the toy set"):
        make_toy_dataset(tmp_path, split="train", count=2)
    assert files(tmp_path) == {"train/000001.png": b"an image"}


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "datasets").write_text("")
    with pytest.raises(UserError, match="datasets/se_toy: the toy set cannot be written there") as error:
        make_toy_dataset(tmp_path / "datasets" / "se_toy", split="train", count=2)
    assert "\n" not in str(error.value)


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
