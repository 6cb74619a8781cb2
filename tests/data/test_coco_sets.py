import json
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection.data.coco_format import read_coco
from se_detection.data.coco_sets import (
    check_coco,
    check_images,
    check_registered,
    common_categories,
    find_bad_images,
    register_coco_json,
)
from se_detection.errors import UserError

# Ids are neither sorted nor contiguous.
CONTENT = {
    "images": [
        {"id": 20, "file_name": "a.jpg", "height": 40, "width": 60},
        {"id": 10, "file_name": "sub/b.png", "height": 64, "width": 48},
    ],
    "annotations": [
        {"id": 31, "image_id": 20, "category_id": 7, "bbox": [1, 2.5, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 17, "image_id": 10, "category_id": 3, "bbox": [0, 0, 10.25, 8], "area": 82, "iscrowd": 0},
        {"id": 18, "image_id": 10, "category_id": 7, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 1},
    ],
    "categories": [{"id": 7, "name": "mast"}, {"id": 3, "name": "buoy"}, {"id": 90, "name": "gull"}],
}
IMAGE, ANNOTATION, CATEGORY = (CONTENT[kind][0] for kind in CONTENT)


def save_noise(path, width, height, **options):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write(json_file, content):
    json_file.write_text(json.dumps(content), encoding="utf-8")
    return json_file


@pytest.fixture
def content():
    return deepcopy(CONTENT)


@pytest.fixture
def folder(tmp_path):
    save_noise(tmp_path / "images" / "a.jpg", 60, 40)
    save_noise(tmp_path / "images" / "sub" / "b.png", 48, 64)
    write(tmp_path / "train.json", CONTENT)
    return tmp_path


@pytest.fixture
def name(request):
    """An unused data set name, which is removed from the catalogs after the test."""
    name = request.node.name
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)


def refused(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def check(folder, **kwargs):
    return check_coco(folder / "train.json", folder / "images", **kwargs)


def test_category_names_match_pycocotools(folder):
    api = COCO(folder / "train.json")
    assert check(folder) == [category["name"] for category in api.loadCats(sorted(api.getCatIds()))]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"images": [],\n "annotations": [}', "line 2 column 18"),
        (b"", "line 1 column 1"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"images": "\xe9"}', "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "top level"),
        (b'{"images": [], "categories": []}', "'annotations'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "'images'"),
    ],
)
def test_files_that_are_not_coco_are_refused(folder, data, expected):
    (folder / "train.json").write_bytes(data)
    message = refused(check, folder)
    assert str(folder / "train.json") in message
    assert expected in message


def test_unreadable_json_is_refused(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    for path, reason in [("none.json", "No such file"), ("", "Is a directory"), ("loop.json", "Too many levels")]:
        message = refused(check_coco, tmp_path / path, tmp_path)
        assert str(tmp_path / path) in message
        assert reason in message


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("images", 5, ["images[2]", "5"]),
        ("images", {"file_name": "a.jpg", "height": 40, "width": 60}, ["images[2]", "no 'id'"]),
        ("images", IMAGE | {"id": "4711"}, ["id '4711'", "integer"]),
        ("images", IMAGE | {"id": True}, ["id True", "integer"]),
        ("images", IMAGE, ["id 20", "unique"]),
        ("images", IMAGE | {"id": 4711, "width": 0}, ["id 4711", "'width'"]),
        ("images", IMAGE | {"id": 4711, "height": 40.5}, ["id 4711", "'height'"]),
        ("images", IMAGE | {"id": 4711, "file_name": None}, ["id 4711", "'file_name'"]),
        ("images", IMAGE | {"id": 4711, "file_name": ""}, ["id 4711", "'file_name'"]),
        ("images", IMAGE | {"id": 4711, "file_name": "sub/../../a.jpg"}, ["id 4711", "../a.jpg"]),
        ("images", IMAGE | {"id": 4711, "file_name": "/a.jpg"}, ["id 4711", "/a.jpg"]),
        ("annotations", [], ["annotations[3]", "[]"]),
        ("annotations", ANNOTATION, ["id 31", "unique"]),
        ("annotations", ANNOTATION | {"id": None}, ["id None", "integer"]),
        ("annotations", ANNOTATION | {"id": 4711, "image_id": "20"}, ["id 4711", "'image_id'"]),
        ("annotations", ANNOTATION | {"id": 4711, "category_id": 7.0}, ["id 4711", "'category_id'"]),
        ("annotations", ANNOTATION | {"id": 4711, "bbox": []}, ["id 4711", "'bbox'"]),
        ("annotations", ANNOTATION | {"id": 4711, "bbox": [1, 2, 3, -4]}, ["id 4711", "-4"]),
        ("annotations", ANNOTATION | {"id": 4711, "bbox": [1, 2, float("nan"), 4]}, ["id 4711", "nan"]),
        ("annotations", ANNOTATION | {"id": 4711, "bbox": [1, 2, float("inf"), 4]}, ["id 4711", "inf"]),
        ("annotations", ANNOTATION | {"id": 4711, "bbox": [1, 2, 10**400, 4]}, ["id 4711", "'bbox'"]),
        ("annotations", ANNOTATION | {"id": 4711, "bbox": {"x": 1}}, ["id 4711", "'bbox'"]),
        ("annotations", ANNOTATION | {"id": 4711, "iscrowd": 2}, ["id 4711", "'iscrowd'"]),
        ("annotations", ANNOTATION | {"id": 4711, "ignore": 1}, ["id 4711", "'ignore'"]),
        ("annotations", ANNOTATION | {"id": 4711, "segmentation": [1, 1, 9, 1, 9, 9]}, ["id 4711", "'segmentation'"]),
        ("annotations", ANNOTATION | {"id": 4711, "image_id": 4712}, ["4711", "image 4712", "(1 such"]),
        ("annotations", ANNOTATION | {"id": 4711, "category_id": 4712}, ["4711", "category 4712", "(1 such"]),
        ("categories", "mast", ["categories[3]", "'mast'"]),
        ("categories", CATEGORY, ["id 7", "unique"]),
        ("categories", {"id": 4711}, ["id 4711", "no 'name'"]),
        ("categories", {"id": 4711, "name": ""}, ["id 4711", "'name'"]),
        ("categories", {"id": "x\ny", "name": "x"}, [r"id 'x\ny'"]),
    ],
)
def test_broken_entries_are_named(folder, content, kind, entry, expected):
    content[kind].append(entry)
    write(folder / "train.json", content)
    message = refused(check, folder)
    assert str(folder / "train.json") in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_missing_keys_are_reported(folder, content, kind):
    required = {
        "images": ["id", "file_name", "height", "width"],
        "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd"],
        "categories": ["id", "name"],
    }
    for key in required[kind]:
        changed = deepcopy(content)
        del changed[kind][1][key]
        write(folder / "train.json", changed)
        message = refused(check, folder)
        assert f"{kind}[1]" in message
        assert f"no {key!r}" in message


def test_empty_lists_are_refused(folder, content):
    for kind in content:
        write(folder / "train.json", content | {kind: []})
        assert kind in refused(check, folder)


def test_data_with_only_crowds_is_refused(folder, content):
    write(folder / "train.json", content | {"annotations": [ANNOTATION | {"iscrowd": 1}]})
    assert "crowds" in refused(check, folder)


def test_annotations_of_unknown_images_are_counted(folder, content):
    for annotation in content["annotations"][1:]:
        annotation["image_id"] = 4711
    write(folder / "train.json", content)
    assert "annotation 17 names image 4711, which the file does not have (2 such" in refused(check, folder)


def test_training_needs_neither_area_nor_iscrowd(folder, content):
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    content["annotations"][0]["id"] = 0
    write(folder / "train.json", content)
    assert check(folder, evaluated=False) == ["buoy", "mast", "gull"]
    refused(check, folder, evaluated=True)


def test_annotation_id_0_lowers_pycocotools_ap_and_is_refused(folder, content):
    def ap(annotations):
        truth = COCO()
        truth.dataset = content | {"annotations": annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([a | {"score": 1.0} for a in deepcopy(annotations)]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    annotations = content["annotations"][:2]
    assert ap(annotations) == pytest.approx(1)
    annotations[0]["id"] = 0
    assert ap(annotations) < 0.9
    write(folder / "train.json", content)
    assert "annotations[0] (id 0)" in refused(check, folder)


def test_a_missing_image_folder_is_refused(folder):
    for path in (folder / "none", folder / "train.json"):
        message = refused(check_coco, folder / "train.json", path)
        assert message.startswith(f"{path}: not a folder")


def test_missing_images_are_counted(folder, content):
    content["images"] += [IMAGE | {"id": 100, "file_name": "gone.jpg"}, IMAGE | {"id": 101, "file_name": "sub"}]
    write(folder / "train.json", content)
    message = refused(check, folder)
    for part in (str(folder / "train.json"), "2 of 4", "'gone.jpg'", str(folder / "images")):
        assert part in message


@pytest.mark.parametrize(
    ("file_name", "options"),
    [
        ("a.jpg", {}),
        ("a.jpg", {"progressive": True}),
        ("a.jpg", {"subsampling": 0, "quality": 98}),
        ("sub/b.png", {}),
    ],
)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.4, 0.7, 0.98])
def test_truncated_images_are_refused_as_in_detectron2(folder, file_name, options, kept):
    path = folder / "images" / file_name
    size = Image.open(path).size
    save_noise(path, *size, **options)
    assert check(folder)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(OSError, match=r"truncated|Truncated|cannot identify"):
        read_image(path, "BGR")
    message = refused(check, folder)
    assert str(folder / "train.json") in message
    assert str(path) in message
    assert f"image {20 if file_name == 'a.jpg' else 10}" in message


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_compared_after_the_exif_orientation_as_in_detectron2(folder, content, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / "images" / f"turned.{suffix}"
    save_noise(path, 60, 40, exif=exif)
    pixels = read_image(path, "BGR")
    verdicts = []
    for width, height in [(60, 40), (40, 60)]:
        content["images"][0] = image = {"id": 20, "file_name": path.name, "width": width, "height": height}
        write(folder / "train.json", content)
        try:
            check_image_size(dict(image), pixels)
        except SizeMismatchError:
            message = refused(check, folder)
            verdicts.append("refused")
            for part in ("image 20", str(path), f"width {width} and height {height}", f"{height} and {width}"):
                assert part in message
        else:
            assert check(folder)
            verdicts.append("accepted")
    assert sorted(verdicts) == ["accepted", "refused"]


def test_decoding_stops_at_the_first_failure(folder, content, monkeypatch):
    opened = []

    def slow_open(path):
        opened.append(path)
        time.sleep(0.005)
        return real_open(path)

    real_open = Image.open
    monkeypatch.setattr(Image, "open", slow_open)
    (folder / "images" / "sub" / "b.png").write_bytes(b"")
    content["images"] = [content["images"][1], *(IMAGE | {"id": 100 + number} for number in range(300))]
    write(folder / "train.json", content | {"annotations": [ANNOTATION | {"image_id": 100}]})
    assert "b.png" in refused(check, folder)
    assert 1 <= len(opened) < 150


def test_progress_is_shown_from_2001_images(folder, content, capfd):
    for count in (2000, 2001):
        content["images"] = [IMAGE | {"id": 20 + number} for number in range(count)]
        write(folder / "train.json", content | {"annotations": [ANNOTATION]})
        check(folder)
        out, err = capfd.readouterr()
        assert out == ""
        assert bool(err) == (count == 2001)
    assert "2001/2001" in err


def test_categories_must_be_the_same(folder, content):
    train = folder / "train.json"
    same = write(folder / "same.json", content | {"categories": content["categories"][::-1]})
    contents = {str(path): read_coco(path) for path in (train, same)}
    assert common_categories(contents) == ["buoy", "mast", "gull"]
    for number, (categories, expected) in enumerate(
        [
            (
                [{"id": 3, "name": "buoy"}, {"id": 7, "name": "post"}, {"id": 90, "name": "gull"}],
                ["7 'mast'", "7 'post'"],
            ),
            (
                [{"id": 3, "name": "buoy"}, {"id": 8, "name": "mast"}, {"id": 90, "name": "gull"}],
                ["7 'mast'", "8 'mast'"],
            ),
            (content["categories"][:2], ["90 'gull'", "no category"]),
            ([*content["categories"], {"id": 91, "name": "crab"}], ["no category", "91 'crab'"]),
        ]
    ):
        other = write(folder / f"other{number}.json", content | {"categories": categories})
        message = refused(common_categories, {**contents, str(other): read_coco(other)})
        for part in (str(train), str(other), *expected):
            assert part in message


def test_registered_records_match_pycocotools(folder, name):
    json_file, image_root = folder / "train.json", folder / "images"
    register_coco_json(name, json_file, image_root)
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    assert Path(metadata.json_file) == json_file
    assert Path(metadata.image_root) == image_root
    assert metadata.thing_classes == ["buoy", "mast", "gull"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 90: 2}
    assert_records_match(name, COCO(json_file))


def assert_records_match(name, api):
    to_contiguous = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    records = DatasetCatalog.get(name)
    assert [record["image_id"] for record in records] == sorted(api.getImgIds())
    for record in records:
        assert Path(record["file_name"]).is_file()
        truth = api.imgToAnns[record["image_id"]]
        assert [a["bbox"] for a in record["annotations"]] == [a["bbox"] for a in truth]
        assert [a["category_id"] for a in record["annotations"]] == [to_contiguous[a["category_id"]] for a in truth]


def test_registering_again_needs_the_same_paths(folder, name, monkeypatch):
    register_coco_json(name, folder / "train.json", folder / "images")
    monkeypatch.chdir(folder)
    register_coco_json(name, "train.json", "images/")
    for paths in [("other.json", "images"), ("train.json", "other")]:
        message = refused(register_coco_json, name, *paths)
        assert name in message
        assert str(folder / "train.json") in message


def test_names_of_builtin_data_sets_are_refused():
    builtin = MetadataCatalog.get("coco_2017_val")
    register_coco_json("coco_2017_val", builtin.json_file, builtin.image_root)
    for name in ("coco_2017_val", "cityscapes_fine_sem_seg_val"):
        assert name in refused(register_coco_json, name, "train.json", "images")


def test_a_broken_file_is_not_registered(folder, name):
    write(folder / "train.json", CONTENT | {"categories": [{"id": 1}]})
    assert "no 'name'" in refused(register_coco_json, name, folder / "train.json", folder / "images")
    assert name not in DatasetCatalog


def test_real_coco_ids_are_mapped_as_in_detectron2(shared_data, name):
    json_file, image_root = (
        shared_data / "coco_mini/annotations/instances_val2017.json",
        shared_data / "coco_mini/val2017",
    )
    builtin = MetadataCatalog.get("coco_2017_val")
    assert check_coco(json_file, image_root) == builtin.thing_classes
    register_coco_json(name, json_file, image_root)
    mapping = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert mapping == builtin.thing_dataset_id_to_contiguous_id
    assert list(mapping.values()) == list(range(80))
    assert_records_match(name, COCO(json_file))


def test_unknown_data_sets_are_reported_with_similar_names():
    message = refused(check_registered, "coco_2017_trian")
    assert "'coco_2017_trian'" in message
    assert "coco_2017_train" in message
    assert "--train-json" in message
    assert "did you mean" not in refused(check_registered, "xyzzy")


def test_missing_files_of_a_registered_set_are_reported(folder, name, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    json_file, image_root = folder / "val.json", folder / "val"
    register_coco_instances(name, {}, str(json_file), str(image_root))
    for path in (json_file, image_root):
        message = refused(check_registered, name)
        assert name in message
        assert f"{path} does not exist" in message
        assert "DETECTRON2_DATASETS (now /data/sets)" in message
        path.mkdir()
    check_registered(name)


def test_a_set_made_on_first_use_needs_no_files(folder, name):
    register_coco_instances(name, {"made_on_first_use": True}, str(folder / "val.json"), str(folder / "val"))
    check_registered(name)


@pytest.mark.parametrize("width", [500, 511, 512, 513, 514, 700, 20_000])
def test_images_too_thin_for_resizing_are_refused(width, tmp_path) -> None:
    Image.new("L", (width, 1)).save(tmp_path / "thin.png")
    image = {"id": 3, "file_name": "thin.png", "width": width, "height": 1}
    content = {"images": [image], "annotations": [{"image_id": 3}]}
    check_images("data.json", [image], tmp_path, skippable=True)
    if 0 not in ResizeShortestEdge.get_output_shape(1, width, 128, 256):
        check_images("data.json", [image], tmp_path, skippable=True, longest=256)
        assert find_bad_images("data.json", content, tmp_path, longest=256) == []
        return
    assert width > 512
    with pytest.raises(
        UserError, match=rf"image 3, .*thin\.png, is so thin \({width}x1\) that resizing its longer side to 256"
    ):
        check_images("data.json", [image], tmp_path, skippable=True, longest=256)
    with pytest.raises(UserError, match=r"nothing to train on is left; .* is so thin"):
        find_bad_images("data.json", content, tmp_path, longest=256)
