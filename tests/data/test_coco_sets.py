import json
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import (
    SizeMismatchError,
    check_image_size,
    create_keypoint_hflip_indices,
    read_image,
)
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection.data.coco_format import image_path
from se_detection.data.coco_sets import (
    check_coco,
    check_images,
    check_registered,
    common_categories,
    find_bad_images,
    name_failing_dataset,
    register_coco_json,
)
from se_detection.data.masks_and_keypoints import check_flips, flip_pairs, flipped_indices, keypoint_metadata

from ..helpers import raises
from .conftest import save_noise

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
IMAGE, ANNOTATION, _ = ({**CONTENT[kind][0], "id": 4711} for kind in CONTENT)


def write(json_file, content):
    json_file.write_text(json.dumps(content), encoding="utf-8")
    return json_file


@pytest.fixture
def content():
    return deepcopy(CONTENT)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
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


def check(folder, **kwargs):
    return check_coco(folder / "train.json", folder / "images", **kwargs)


def test_category_names_match_pycocotools(folder):
    api = COCO(folder / "train.json")
    assert check(folder) == [category["name"] for category in api.loadCats(sorted(api.getCatIds()))]


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        (b'{"images": [],\n "annotations": [}', "file.not_json", "line 2 column 18"),
        (b'{"images": "\xe9"}', "file.not_json", "utf-8"),
        (b"[" * 100_000, "file.not_json", "nested too deeply"),
        (b"[]", "data.not_coco", "'images'"),
        (b'{"images": [], "categories": []}', "data.not_coco", "'annotations'"),
        (b'{"images": {}, "annotations": [], "categories": []}', "data.not_coco", "'images'"),
    ],
)
def test_files_that_are_not_coco_are_refused(folder, data, code, named):
    (folder / "train.json").write_bytes(data)
    with raises(code, folder / "train.json", named):
        check(folder)
    with raises("file.unreadable", folder / "none.json"):
        check_coco(folder / "none.json", folder)


WRONG = {
    "images": {
        "id": ["4711", True],
        "width": [0],
        "height": [40.5, 2**31],
        "file_name": [None, "", "sub/../../a.jpg", "/a.jpg", "a\0.jpg"],
    },
    "annotations": {
        "id": [None, 2**63],
        "image_id": ["20"],
        "category_id": [7.0],
        "bbox": [
            [],
            {"x": 1},
            [1, 2, 3, -4],
            [1, 2, float("nan"), 4],
            [1, 2, 2**31, 4],
            [1, 2, 10**400, 4],
            [1, 2, "3", 4],
        ],
        "area": [-1],
        "iscrowd": [2],
        "ignore": [1],
        "keypoints": [[1, "2"], {}],
        "segmentation": [
            [1, 1, 9, 1, 9, 9],
            [[1, 1, 9, 1]],
            [[1, 1, 9, 1, 9, 10**400]],
            # pycocotools would read beyond the end of a run-length code.
            {"size": [40, 60], "counts": [2401]},
            {"size": [40], "counts": [40]},
            {"size": [40, 60], "counts": "ä"},
        ],
    },
    "categories": {"id": ["x\ny"], "name": ["", "\ud800"]},
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in WRONG.items() for key in keys])
def test_broken_entries_are_named(folder, content, kind, key):
    number = f"{kind}[{len(content[kind])}]"
    for value in WRONG[kind][key]:
        write(folder / "train.json", content | {kind: [*content[kind], content[kind][0] | {"id": 4711, key: value}]})
        with raises("data.bad_entry", folder / "train.json", number, f"{key!r}"):
            check(folder)
    write(folder / "train.json", content | {kind: [*content[kind], "x"]})
    with raises("data.bad_entry", number, "'x'"):
        check(folder)


@pytest.mark.parametrize("kind", CONTENT)
def test_missing_keys_and_repeated_ids_are_reported(folder, content, kind):
    required = {
        "images": ["id", "file_name", "height", "width"],
        "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd"],
        "categories": ["id", "name"],
    }
    for key in required[kind]:
        changed = deepcopy(content)
        del changed[kind][1][key]
        write(folder / "train.json", changed)
        with raises("data.bad_entry", f"{kind}[1]", f"no {key!r}"):
            check(folder)
    write(folder / "train.json", content | {kind: [*content[kind], content[kind][0]]})
    with raises("data.repeated_id", f"{kind}[{len(content[kind])}]", content[kind][0]["id"]):
        check(folder)
    write(folder / "train.json", content | {kind: []})
    with raises("data.no_objects" if kind == "annotations" else "data.empty", folder / "train.json"):
        check(folder)


def test_unusable_annotations_and_categories_are_refused(folder, content):
    for change, code, *named in (
        ({"annotations": [ANNOTATION | {"iscrowd": 1}]}, "data.no_objects"),
        ({"annotations": [ANNOTATION | {"image_id": 4711}]}, "data.unknown_id", 4711, "image_id 4711"),
        ({"annotations": [ANNOTATION | {"category_id": 4711}]}, "data.unknown_id", 4711, "category_id 4711"),
        ({"categories": [*content["categories"], {"id": 8, "name": "gull"}]}, "data.repeated_name", "'gull'"),
    ):
        write(folder / "train.json", content | change)
        with raises(code, folder / "train.json", *named):
            check(folder)


def test_training_needs_neither_area_nor_iscrowd(folder, content):
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    content["annotations"][0]["id"] = 0
    write(folder / "train.json", content)
    assert check(folder, evaluated=False) == ["buoy", "mast", "gull"]
    with raises("data.bad_entry", "annotations[0]"):
        check(folder, evaluated=True)


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
    with raises("data.bad_entry", "annotations[0] (id 0)"):
        check(folder)


def test_missing_folders_and_images_are_reported(folder, content):
    for path in (folder / "none", folder / "train.json"):
        with raises("data.no_folder", path):
            check_coco(folder / "train.json", path)
    content["images"] += [IMAGE | {"id": 100, "file_name": "gone.jpg"}, IMAGE | {"id": 101, "file_name": "sub"}]
    write(folder / "train.json", content)
    with raises("data.missing_images", folder / "train.json", "2 of 4", "'gone.jpg'", folder / "images"):
        check(folder)
    assert image_path("train.json", folder, IMAGE) == folder / "a.jpg"
    for file_name in ("../a.jpg", None):
        with raises("data.bad_entry", "train.json", 4711, file_name):
            image_path("train.json", folder, IMAGE | {"file_name": file_name})


@pytest.mark.parametrize(
    ("file_name", "options"),
    [("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.jpg", {"subsampling": 0, "quality": 98}), ("sub/b.png", {})],
)
def test_truncated_images_are_refused_as_in_detectron2(folder, file_name, options):
    path = folder / "images" / file_name
    size = Image.open(path).size
    save_noise(path, *size, **options)
    assert check(folder)
    data = path.read_bytes()
    for kept in (0.0, 0.01, 0.4, 0.7, 0.98):
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(OSError, match=r"truncated|Truncated|cannot identify"):
            read_image(path, "BGR")
        with raises("data.bad_image", folder / "train.json", path, f"image {20 if file_name == 'a.jpg' else 10}"):
            check(folder)
        with raises("data.bad_image", path, "--skip-bad-images"):
            check(folder, evaluated=False)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_size_is_compared_after_the_exif_orientation_as_in_detectron2(folder, content, suffix):
    path = folder / "images" / f"turned.{suffix}"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save_noise(path, 60, 40, exif=exif)
        pixels = read_image(path, "BGR")
        accepted = []
        for width, height in [(60, 40), (40, 60)]:
            content["images"][0] = image = {"id": 20, "file_name": path.name, "width": width, "height": height}
            write(folder / "train.json", content)
            try:
                check_image_size(dict(image), pixels)
            except SizeMismatchError:
                with raises(
                    "data.bad_image", "image 20", path, f"width {width} and height {height}", f"{height} and {width}"
                ):
                    check(folder)
            else:
                accepted.append(check(folder))
        assert len(accepted) == 1


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
    with raises("data.bad_image", "b.png"):
        check(folder)
    assert 1 <= len(opened) < 150


def test_progress_is_shown_for_many_images_on_a_terminal(folder, content, capsys, monkeypatch):
    monkeypatch.setattr("se_detection.data.image_files.SHOW_PROGRESS_FROM", 20)
    for count, terminal in ((20, True), (21, False), (21, True)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        content["images"] = [IMAGE | {"id": 20 + number} for number in range(count)]
        write(folder / "train.json", content | {"annotations": [ANNOTATION]})
        check(folder)
        out, err = capsys.readouterr()
        assert out == ""
        assert bool(err) == (count == 21 and terminal)
    assert "21/21" in err


def test_categories_must_be_the_same(content):
    same = {"categories": content["categories"][::-1]}
    assert common_categories({"a": content, "b": same}) == ["buoy", "mast", "gull"]
    buoy, mast, gull = same["categories"][1], *(content["categories"][at] for at in (0, 2))
    for categories, *named in (
        ([buoy, {"id": 7, "name": "post"}, gull], "7 'mast'", "7 'post'"),
        ([buoy, {"id": 8, "name": "mast"}, gull], "7 'mast'", "8 'mast'"),
        ([buoy, mast], "90 'gull'", "no category"),
        ([buoy, mast, gull, {"id": 91, "name": "crab"}], "no category", "91 'crab'"),
    ):
        with raises("data.other_categories", "a has", "c has", *named):
            common_categories({"a": content, "b": same, "c": {"categories": categories}})


def test_registered_records_match_pycocotools(folder, name):
    json_file, image_root = folder / "train.json", folder / "images"
    register_coco_json(name, json_file, image_root)
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    assert (Path(metadata.json_file), Path(metadata.image_root)) == (json_file, image_root)
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
        with raises("data.name_taken", name, folder / "train.json"):
            register_coco_json(name, *paths)
    for builtin in ("coco_2017_val", "cityscapes_fine_sem_seg_val"):
        with raises("data.name_taken", builtin):
            register_coco_json(builtin, "train.json", "images")
    write(folder / "train.json", CONTENT | {"categories": [{"id": 1}]})
    with raises("data.bad_entry", "no 'name'"):
        register_coco_json("broken", folder / "train.json", folder / "images")
    assert "broken" not in DatasetCatalog


def test_real_coco_ids_are_mapped_as_in_detectron2(shared_data, name):
    folder = shared_data / "coco_mini"
    json_file, image_root = folder / "annotations/instances_val2017.json", folder / "val2017"
    builtin = MetadataCatalog.get("coco_2017_val")
    assert check_coco(json_file, image_root) == builtin.thing_classes
    register_coco_json(name, json_file, image_root)
    mapping = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert mapping == builtin.thing_dataset_id_to_contiguous_id
    assert list(mapping.values()) == list(range(80))
    assert_records_match(name, COCO(json_file))


@pytest.mark.parametrize("skeleton", [None, 5, [[1]], [[1, 9]], [["a", "b"]], [[0, 1]], [[2, -1]]])
def test_a_broken_skeleton_has_no_connections(skeleton):
    category = {"id": 1, "name": "mast", "keypoints": ["top", "bottom"], "skeleton": skeleton}
    assert keypoint_metadata({"categories": [category]})["keypoint_connection_rules"] == []


SIDES = [
    ("left_eye", "right_eye"),
    ("LeftEye", "RightEye"),
    ("LEFT EYE", "RIGHT EYE"),
    ("lefteye", "righteye"),
    ("l_eye", "r_eye"),
    ("eye_L", "eye_R"),
    ("eyeL", "eyeR"),
    ("LEye", "REye"),
    ("Leye", "Reye"),
    ("lt-eye", "rt-eye"),
    ("oeil_gauche", "oeil_droit"),
    ("Auge links", "Auge rechts"),
    ("左眼", "右眼"),
    ("left_1", "right_1"),
    ("left_eye_right_corner", "right_eye_left_corner"),
]


@pytest.mark.parametrize("pair", SIDES)
def test_left_and_right_keypoints_are_swapped_as_in_detectron2(pair, name):
    # The others have no side.
    names = [pair[1], "cleft_lip", "nose", pair[0], "light", "L4", "tail_1"]
    metadata = keypoint_metadata({"categories": [{"id": 1, "name": "x", "keypoints": names}]})
    assert metadata["keypoint_flip_map"] == flip_pairs(names) == [pair]
    MetadataCatalog.get(name).set(**metadata)
    assert create_keypoint_hflip_indices(name) == flipped_indices(names, [pair]) == [3, 1, 2, 0, 4, 5, 6]
    check_flips(name, names[:5])


def test_keypoints_whose_side_is_not_known_are_refused():
    builtin = MetadataCatalog.get("keypoints_coco_2017_val")
    names = list(builtin.keypoint_names)
    assert sorted(flip_pairs(names)) == sorted(builtin.keypoint_flip_map)
    check_flips("a", names)
    check_flips("a", ["top", "bottom", "cleft_lip", "L4", "light"])
    check_flips("a", ["eye_1", "eye_2"], [("eye_1", "eye_2")])
    check_flips("a", ["spine_1", "spine_2"], [("spine_1", "spine_1")])
    for names, named in (
        (["right_wing", "top"], "right_wing"),
        (["l_eye", "r_eye", "l_ear"], "l_ear"),
        (["main_gauche"], "main_gauche"),
    ):
        with raises("data.unpaired_keypoint", "a:", repr(named), "INPUT.KEYPOINT_FLIP_MAP", "INPUT.RANDOM_FLIP"):
            check_flips("a", names)
    for names in (["eye_1", "eye_2"], ["eyeA", "nose", "eyeB"], ["1", "2", "3"]):
        with raises("data.unknown_sides", "a:", f"[({names[0]!r}, {names[-1 if 'nose' in names else 1]!r})]"):
            check_flips("a", names)
    for given in ([("eye_1",)], [("eye_1", "eye_3")], [("eye_1", "eye_2"), ("eye_2", "eye_2")]):
        with raises("config.keypoint_flip_map", "a:", "eye_1"):
            check_flips("a", ["eye_1", "eye_2"], given)


def test_unknown_data_sets_are_reported_with_similar_names():
    with raises("data.unknown_set", "'coco_2017_trian'", "coco_2017_train", "--train-json"):
        check_registered("coco_2017_trian")
    with raises("data.unknown_set", "registered; give"):
        check_registered("xyzzy")
    with raises("data.unusable", "one, other", "'bbox'"), name_failing_dataset(["one", "other"]):
        {}["bbox"]


def test_missing_files_of_a_registered_set_are_reported(folder, name, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    json_file, image_root = folder / "val.json", folder / "val"
    register_coco_instances(name, {}, str(json_file), str(image_root))
    for path in (json_file, image_root):
        with raises("data.missing_files", name, path, "/data/sets"):
            check_registered(name)
        path.mkdir()
    check_registered(name)
    json_file.rmdir()
    # A set that is made on first use needs no files.
    MetadataCatalog.get(name).made_on_first_use = True
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
    with raises("data.bad_image", "image 3", "thin.png", f"{width}x1", 256):
        check_images("data.json", [image], tmp_path, skippable=True, longest=256)
    with raises("data.no_objects", "thin.png", f"{width}x1"):
        find_bad_images("data.json", content, tmp_path, longest=256)
