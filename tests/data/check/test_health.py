import pytest
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from PIL import Image

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder, read_annotated_folders
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.check.health_report import health_tables
from se_detection.data.coco_sets import check_coco
from se_detection.errors import UserError

from ...helpers import raises
from ..conftest import save_noise


def check(data_set, cfg, *others):
    data_set.write()
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    return check_health(annotated, decode_images(annotated), read_annotated_folders(others), cfg)


def found(health):
    """Level and count by key."""
    return {finding["key"]: (finding["level"], finding["count"]) for finding in health["findings"]}


def test_a_valid_set_has_no_findings(data_set, cfg) -> None:
    data_set.content["annotations"].append(
        {**data_set.content["annotations"][0], "id": 99, "iscrowd": 1, "bbox": [1, 1, 9, 9], "area": 81}
    )
    health = check(data_set, cfg)
    assert health["findings"] == []
    assert health["classes"] == [
        {"id": 1, "name": "mast", "boxes": 12, "images": 12, "crowds": 1},
        {"id": 2, "name": "buoy", "boxes": 12, "images": 12, "crowds": 0},
        {"id": 3, "name": "gull", "boxes": 12, "images": 12, "crowds": 0},
    ]
    assert health["anchors"]["classes"][-1]["boxes"] == 36
    assert check_coco(data_set.json_file, data_set.images)


def change(kind, *indices, **values):
    """Changes entries; a value of None deletes the key."""

    def apply(data_set):
        for index in indices:
            entry = data_set.content[kind][index] | values
            data_set.content[kind][index] = {key: value for key, value in entry.items() if value is not None}

    return apply


def append(kind, entry):
    def apply(data_set):
        first = data_set.content[kind][0]
        data_set.content[kind].append({**first, **entry} if isinstance(entry, dict) else entry)

    return apply


def files(action):
    return lambda data_set: action(data_set.images)


def turn(images):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_noise(images / "0_0.png", 60, 40, exif=exif)


def boxes(convert):
    def apply(data_set):
        for annotation in data_set.content["annotations"]:
            annotation["bbox"] = convert(*annotation["bbox"])

    return apply


def swap(images):
    (images / "0_1.png").write_bytes((images / "0_2.png").read_bytes())


as_corners = boxes(lambda x, y, width, height: [x + 22, y + 10, x + 22 + width - 16, y + height])
as_fractions = boxes(lambda x, y, width, height: [x / 60, y / 40, width / 60, height / 40])
ALL = range(36)


@pytest.mark.parametrize(
    ("breakage", "expected"),
    [
        (append("images", 5), {"images-no-object": 1}),
        (append("annotations", None), {"annotations-no-object": 1}),
        (append("categories", "mast"), {"categories-no-object": 1}),
        (append("images", {}), {"images-repeated-id": 1, "images-repeated-name": 1}),
        (append("annotations", {"bbox": [1, 1, 9, 9]}), {"annotations-repeated-id": 1}),
        (append("categories", {"name": "crab"}), {"categories-repeated-id": 1}),
        (lambda data_set: data_set.content.update(categories=[]), {"categories-empty": 1}),
        (change("images", 0, file_name=None), {"images-without-file_name": 1}),
        (change("images", 0, file_name="../a.jpg"), {"images-wrong-file_name": 1}),
        (change("annotations", 0, id=0), {"annotations-wrong-id": 1}),
        (change("annotations", *range(5), area=None), {"annotations-without-area": 5}),
        (change("annotations", *range(5), iscrowd=2), {"annotations-wrong-iscrowd": 5}),
        (change("annotations", 3, bbox=[1, 2, 3, -4]), {"annotations-wrong-bbox": 1}),
        (change("annotations", 3, image_id=4711), {"annotations-unknown-image": 1}),
        (change("annotations", 3, category_id=4711), {"annotations-unknown-category": 1}),
        (change("annotations", *ALL, iscrowd=1), {"nothing-to-learn": 1}),
        (files(lambda images: (images / "0_3.png").unlink()), {"images-missing": 1}),
        (files(lambda images: (images / "0_3.png").write_bytes(b"GIF89a")), {"images-undecodable": 1}),
        (files(lambda images: save_noise(images / "0_3.png", 61, 40)), {"images-wrong-size": 1}),
        (change("images", 0, width=0), {"images-wrong-width": 1}),
        (files(turn), {"images-turned": 1}),
        (append("categories", {"id": 4}), {"categories-repeated-name": 1}),
    ],
)
def test_each_error_is_found_and_counted(data_set, cfg, breakage, expected) -> None:
    breakage(data_set)
    health = check(data_set, cfg)
    assert expected.items() <= {key: count for key, (_, count) in found(health).items()}.items()
    assert found(health)[next(iter(expected))][0] == "error"
    with pytest.raises(UserError):
        check_coco(data_set.json_file, data_set.images)


@pytest.mark.parametrize(
    ("breakage", "level", "key", "count"),
    [
        (change("annotations", 3, bbox=[61, 2, 3, 4]), "error", "boxes-outside", 1),
        (as_corners, "error", "boxes-notation", 36),
        (as_fractions, "error", "boxes-notation", 36),
        (change("annotations", 3, bbox=[50, 2, 13, 4]), "warning", "boxes-sticking-out", 1),
        (change("annotations", *range(4), bbox=[5, 2, 0, 4]), "warning", "boxes-empty", 4),
        (append("annotations", {"id": 99}), "warning", "boxes-repeated", 1),
        (append("images", {"id": 99, "file_name": "0_1.png"}), "warning", "images-repeated-name", 1),
        (files(swap), "warning", "images-repeated-content", 1),
        (append("categories", {"id": 4, "name": "crab"}), "warning", "classes-empty", 1),
        (change("annotations", 0, 3, category_id=2), "warning", "classes-rare", 1),
        (change("annotations", 0, 1, 2, image_id=101), "warning", "images-without-annotations", 1),
        (change("annotations", *range(10), bbox=[5, 5, 0.5, 0.5]), "warning", "boxes-without-anchor", 10),
        (append("categories", {"id": 9, "name": "crab"}), "note", "category-gaps", 1),
        (append("categories", {"id": 0, "name": "crab"}), "note", "category-gaps", 1),
    ],
)
def test_usable_files_may_have_findings(data_set, cfg, breakage, level, key, count) -> None:
    breakage(data_set)
    health = check(data_set, cfg)
    assert found(health)[key] == (level, count)
    assert health["errors"] == (level == "error")
    assert check_coco(data_set.json_file, data_set.images)


@pytest.mark.parametrize(("crowds", "fit"), [(18, True), (19, False)])
def test_crowds_must_not_be_most_of_the_objects(data_set, cfg, crowds, fit) -> None:
    """detectron2's mapper drops them."""
    change("annotations", *range(crowds), iscrowd=1)(data_set)
    health = check(data_set, cfg)
    assert found(health).get("annotations-mostly-crowds") == (None if fit else ("error", crowds))
    records = load_coco_json(str(data_set.json_file), str(data_set.images))
    mapper = DatasetMapper(cfg, is_train=True)
    assert sum(len(mapper(record)["instances"]) for record in records) == 36 - crowds
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    fixed, changes = fix_annotations(annotated, decode_images(annotated))
    assert sum(map(len, changes.values())) == (0 if fit else crowds)
    assert [entry["iscrowd"] for entry in fixed.content["annotations"]].count(0) == (36 - crowds if fit else 36)


def test_all_problems_are_found_at_once(data_set, cfg) -> None:
    for breakage in (
        change("annotations", 3, image_id=4711),
        change("annotations", 0, id=0),
        change("annotations", 5, bbox=[61, 2, 3, 4]),
        files(lambda images: (images / "0_3.png").unlink()),
        append("categories", {"id": 4, "name": "crab"}),
    ):
        breakage(data_set)
    examples = {finding["key"]: finding["examples"][0] for finding in check(data_set, cfg)["findings"]}
    expected = {
        "annotations-wrong-id": "annotations[0] (id 0)",
        "annotations-unknown-image": "annotations[3] (id 4): image 4711",
        "images-missing": "images[3] (id 103): '0_3.png'",
        "boxes-outside": "annotation 6 in '0_1.png': [61, 2, 3, 4]",
        "classes-empty": "'crab' (id 4)",
    }
    assert {key: examples[key] for key in examples if key in expected} == expected
    assert [key for key in examples if key in expected] == list(expected)


def test_gaps_in_category_ids_are_listed(data_set, cfg) -> None:
    ids = {1: 3, 2: 4, 3: 90}
    for category in data_set.content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in data_set.content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    data_set.content["categories"].append({"id": 92, "name": "crab"})
    assert check(data_set, cfg)["findings"][-1]["examples"] == ["1 to 2", "5 to 89", "91"]


def test_overlap_and_different_categories_are_found(data_set, make_data_set, cfg) -> None:
    other = make_data_set("other", seed=1)
    paths = other.json_file, other.images
    assert check(data_set, cfg, *paths)["findings"] == []
    name = other.content["images"][5]["file_name"]
    (other.images / name).write_bytes((data_set.images / "0_2.png").read_bytes())
    other.content["categories"][2]["name"] = "crab"
    other.write()
    health = check(data_set, cfg, *paths)
    assert found(health) == {"categories-differ": ("error", 1), "overlap-same-content": ("error", 1)}
    assert str(other.json_file) in health["findings"][0]["what"]
    assert health["findings"][0]["examples"] == ["category 3 'gull' and category 3 'crab'"]
    assert health["findings"][1]["examples"] == [f"'0_2.png' = '{name}'"]
    # Without the folder, only names can be compared.
    assert "overlap-same-content" not in found(check(data_set, cfg, other.json_file))
    other.content["images"][5]["file_name"] = "0_2.png"
    other.write()
    assert found(check(data_set, cfg, other.json_file))["overlap-same-name"] == ("warning", 1)


def test_the_table_and_the_json_agree(data_set, cfg) -> None:
    for index in range(5):
        data_set.content["annotations"][index]["bbox"] = [61, 2, 3, 4 + index]
    health = check(data_set, cfg)
    table = health_tables(health)
    assert max(map(len, table.splitlines())) <= 120 + len(str(data_set.json_file))
    assert "… and 2 more" in table
    assert "not fit for training and evaluation; errors: 1, warnings: 0, notes: 0" in table.splitlines()[-1]
    (finding,) = health["findings"]
    assert (health["errors"], health["warnings"]) == (1, 0)
    assert (finding["count"], len(finding["examples"]), finding["level"]) == (5, 5, "error")
    assert health["classes"][0] == {"id": 1, "name": "mast", "boxes": 12, "images": 12, "crowds": 0}
    assert health["anchors"]["classes"][-1]["boxes"] == 31


def test_names_and_keys_are_not_broken(data_set, cfg) -> None:
    """They can be copied from the table."""
    name = f"{'bridge-' * 9}at_night.jpg"
    data_set.content["images"][0]["file_name"] = name
    cfg = cfg.clone()
    cfg.INPUT.MIN_SIZE_TEST = 16
    table = health_tables(check(data_set, cfg))
    for whole in (name, "MODEL.ANCHOR_GENERATOR.SIZES", "INPUT.MIN_SIZE_TRAIN"):
        assert whole in table


def test_a_long_list_of_classes_is_shortened(data_set, cfg) -> None:
    data_set.content["categories"] += [{"id": number, "name": f"class {number}"} for number in range(4, 101)]
    table = health_tables(check(data_set, cfg))
    assert "(76 more)" in table
    assert [name in table for name in ("mast", "class 100", "class 50")] == [True, True, False]


def test_folders_follow_their_files(data_set, make_data_set) -> None:
    other = make_data_set("other", seed=1)
    folders = read_annotated_folders([data_set.json_file, other.json_file, other.images])
    assert [folder[:2] for folder in folders] == [(data_set.json_file, None), (other.json_file, other.images)]
    for paths in ([other.images], [other.json_file, other.images, data_set.images]):
        with raises("data.no_json", paths[-1]):
            read_annotated_folders(paths)
    with raises("data.no_folder", data_set.images / "none"):
        read_annotated_folder(data_set.json_file, data_set.images / "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("json_file", "images"),
    [
        pytest.param("bccd/annotations/train.json", "bccd/train", marks=pytest.mark.slow),
        ("coco_person/annotations/person_val.json", "coco_person/val"),
    ],
)
def test_real_sets_have_no_errors(shared_data, cfg, json_file, images) -> None:
    annotated = read_annotated_folder(shared_data / json_file, shared_data / images)
    health = check_health(annotated, decode_images(annotated), [], cfg)
    assert health["errors"] == 0
    boxes = [entry for entry in annotated.content["annotations"] if not entry["iscrowd"]]
    assert sum(row["boxes"] for row in health["classes"]) == len(boxes)
