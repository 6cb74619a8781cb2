import json
from copy import deepcopy

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder, read_annotated_folders
from se_detection.data.check.health import check_health
from se_detection.data.check.health_report import health_dict, health_tables
from se_detection.data.coco_sets import check_coco
from se_detection.errors import UserError

from ..conftest import save_noise
from .breakage import break_content, breakages


def check(data_set, cfg, *others):
    data_set.write()
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    return check_health(annotated, decode_images(annotated), read_annotated_folders(others), cfg)


def found(health):
    """Level and count by key."""
    return {finding.key: (finding.level, finding.count) for finding in health.findings}


def test_a_valid_set_has_no_findings(data_set, cfg) -> None:
    health = check(data_set, cfg)
    assert health.findings == ()
    assert [(count.name, count.boxes, count.images, count.crowds) for count in health.classes] == [
        ("mast", 12, 12, 0),
        ("buoy", 12, 12, 0),
        ("gull", 12, 12, 0),
    ]
    assert health.anchors.classes[-1].boxes == 36
    assert check_coco(data_set.json_file, data_set.images)


def change(kind, index, **values):
    def apply(data_set):
        data_set.content[kind][index].update(values)

    return apply


def delete(kind, index, key):
    def apply(data_set):
        del data_set.content[kind][index][key]

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


def as_corners(data_set):
    for annotation in data_set.content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x + 22, y + 10, x + 22 + width - 16, y + height]


def as_fractions(data_set):
    for annotation in data_set.content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x / 60, y / 40, width / 60, height / 40]


def tiny_boxes(data_set):
    for annotation in data_set.content["annotations"][:10]:
        annotation["bbox"] = [5, 5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("breakages", "expected"),
    [
        ([append("images", 5), append("annotations", None)], {"images-no-object": 1, "annotations-no-object": 1}),
        ([append("categories", "mast")], {"categories-no-object": 1}),
        ([append("images", {})], {"images-repeated-id": 1, "images-repeated-name": 1}),
        ([append("annotations", {"bbox": [1, 1, 9, 9]})], {"annotations-repeated-id": 1}),
        ([append("categories", {"name": "crab"})], {"categories-repeated-id": 1}),
        ([delete("images", 0, "file_name")], {"images-without-file_name": 1}),
        ([change("images", 0, file_name="../a.jpg")], {"images-wrong-file_name": 1}),
        ([change("annotations", 0, id=0)], {"annotations-wrong-id": 1}),
        ([delete("annotations", n, "area") for n in range(5)], {"annotations-without-area": 5}),
        ([delete("annotations", n, "iscrowd") for n in range(5)], {"annotations-without-iscrowd": 5}),
        ([change("annotations", n, iscrowd=2) for n in range(5)], {"annotations-wrong-iscrowd": 5}),
        ([change("annotations", 3, bbox=[1, 2, 3, -4])], {"annotations-wrong-bbox": 1}),
        ([change("annotations", 3, image_id=4711)], {"annotations-unknown-image": 1}),
        ([change("annotations", 3, category_id=4711)], {"annotations-unknown-category": 1}),
        ([change("annotations", n, iscrowd=1) for n in range(36)], {"nothing-to-learn": 1}),
        ([files(lambda images: (images / "0_3.png").unlink())], {"images-missing": 1}),
        ([files(lambda images: (images / "0_3.png").write_bytes(b"GIF89a"))], {"images-undecodable": 1}),
        ([files(lambda images: save_noise(images / "0_3.png", 61, 40))], {"images-wrong-size": 1}),
        ([change("images", 0, width=0)], {"images-wrong-width": 1}),
        ([files(turn)], {"images-turned": 1}),
        ([change("annotations", 3, bbox=[61, 2, 3, 4])], {"boxes-outside": 1}),
        ([as_corners], {"boxes-notation": 36}),
        ([as_fractions], {"boxes-notation": 36}),
        ([append("categories", {"id": 4})], {"categories-repeated-name": 1}),
        ([change("images", 1, file_name="0_0.png")], {"images-repeated-name": 1}),
    ],
)
def test_each_error_is_found_and_counted(data_set, cfg, breakages, expected) -> None:
    for breakage in breakages:
        breakage(data_set)
    health = check(data_set, cfg)
    counts = {key: count for key, (_, count) in found(health).items()}
    assert expected.items() <= counts.items()
    # The quick check of tools/train_net.py accepts wrong values that are usable, and refuses all others.
    if set(expected) <= {"boxes-outside", "boxes-notation", "images-repeated-name"}:
        assert check_coco(data_set.json_file, data_set.images)
    else:
        with pytest.raises(UserError):
            check_coco(data_set.json_file, data_set.images)
    if set(expected) != {"images-repeated-name"}:
        assert health.count("error")


@pytest.mark.parametrize(
    ("breakages", "level", "key", "count"),
    [
        ([change("annotations", 3, bbox=[50, 2, 13, 4])], "warning", "boxes-sticking-out", 1),
        ([change("annotations", n, bbox=[5, 2, 0, 4]) for n in range(4)], "warning", "boxes-empty", 4),
        ([append("annotations", {"id": 99})], "warning", "boxes-repeated", 1),
        ([append("images", {"id": 99, "file_name": "0_1.png"})], "warning", "images-repeated-name", 1),
        (
            [files(lambda images: (images / "0_1.png").write_bytes((images / "0_2.png").read_bytes()))],
            "warning",
            "images-repeated-content",
            1,
        ),
        ([append("categories", {"id": 4, "name": "crab"})], "warning", "classes-empty", 1),
        ([change("annotations", n, category_id=2) for n in (0, 3)], "warning", "classes-rare", 1),
        ([change("annotations", n, image_id=101) for n in range(3)], "warning", "images-without-annotations", 1),
        ([tiny_boxes], "warning", "boxes-without-anchor", 10),
        ([append("categories", {"id": 9, "name": "crab"})], "note", "category-gaps", 1),
        ([append("categories", {"id": 0, "name": "crab"})], "note", "category-gaps", 1),
    ],
)
def test_possible_problems_are_not_errors(data_set, cfg, breakages, level, key, count) -> None:
    for breakage in breakages:
        breakage(data_set)
    health = check(data_set, cfg)
    assert found(health)[key] == (level, count)
    assert health.count("error") == 0
    assert check_coco(data_set.json_file, data_set.images)


def test_all_problems_are_found_at_once(data_set, cfg) -> None:
    for breakage in (
        change("annotations", 3, image_id=4711),
        change("annotations", 0, id=0),
        change("annotations", 5, bbox=[61, 2, 3, 4]),
        files(lambda images: (images / "0_3.png").unlink()),
        append("categories", {"id": 4, "name": "crab"}),
    ):
        breakage(data_set)
    keys = ["annotations-wrong-id", "annotations-unknown-image", "images-missing", "boxes-outside", "classes-empty"]
    health = check(data_set, cfg)
    assert [finding.key for finding in health.findings if finding.key in keys] == keys
    examples = {finding.key: finding.examples[0] for finding in health.findings}
    assert "id 4" in examples["annotations-unknown-image"]
    assert "4711" in examples["annotations-unknown-image"]
    assert "'0_3.png'" in examples["images-missing"]
    assert "annotation 6 in '0_1.png': [61, 2, 3, 4]" in examples["boxes-outside"]
    assert "'crab'" in examples["classes-empty"]


def test_gaps_in_category_ids_are_listed(data_set, cfg) -> None:
    ids = {1: 3, 2: 4, 3: 90}
    for category in data_set.content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in data_set.content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    (finding,) = check(data_set, cfg).findings
    assert finding.examples == ["1 to 2", "5 to 89"]


def test_overlap_and_different_categories_are_found(data_set, make_data_set, cfg) -> None:
    other = make_data_set("other", seed=1)
    paths = other.json_file, other.images
    assert check(data_set, cfg, *paths).findings == ()
    name = other.content["images"][5]["file_name"]
    (other.images / name).write_bytes((data_set.images / "0_2.png").read_bytes())
    other.content["categories"][2]["name"] = "crab"
    other.write()
    health = check(data_set, cfg, *paths)
    assert found(health) == {"categories-differ": ("error", 1), "overlap-same-content": ("error", 1)}
    assert str(other.json_file) in health.findings[0].what
    assert "'gull'" in health.findings[0].examples[0]
    assert "'crab'" in health.findings[0].examples[0]
    assert health.findings[1].examples == [f"'0_2.png' = '{name}'"]
    # Without the folder, only names can be compared.
    assert "overlap-same-content" not in found(check(data_set, cfg, other.json_file))
    other.content["images"][5]["file_name"] = "0_2.png"
    other.write()
    assert found(check(data_set, cfg, other.json_file))["overlap-same-name"] == ("warning", 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(breakages())
def test_without_errors_the_quick_check_accepts_the_file(data_set, cfg, steps) -> None:
    whole = deepcopy(data_set.content)
    break_content(data_set.content, steps)
    try:
        health = check(data_set, cfg)
        assert json.loads(json.dumps(health_dict(health), allow_nan=False))["errors"] == health.count("error")
        assert str(data_set.json_file) in health_tables(health)
        if not health.count("error"):
            assert check_coco(data_set.json_file, data_set.images)
    finally:
        data_set.content = whole


def test_the_table_and_the_json_agree(data_set, cfg) -> None:
    for index in range(5):
        data_set.content["annotations"][index]["bbox"] = [61, 2, 3, 4 + index]
    health = check(data_set, cfg)
    table = health_tables(health)
    assert max(map(len, table.splitlines())) <= 120 + len(str(data_set.json_file))
    assert "… and 2 more" in table
    assert "not fit for training and evaluation; errors: 1, warnings: 0, notes: 0" in table.splitlines()[-1]
    content = health_dict(health)
    (finding,) = content["findings"]
    assert (finding["count"], len(finding["examples"]), finding["level"]) == (5, 5, "error")
    assert content["classes"][0] == {"id": 1, "name": "mast", "boxes": 12, "images": 12, "crowds": 0}
    assert content["anchors"]["classes"][-1]["boxes"] == 31


def test_a_long_list_of_classes_is_shortened(data_set, cfg) -> None:
    data_set.content["categories"] += [{"id": number, "name": f"class {number}"} for number in range(4, 101)]
    table = health_tables(check(data_set, cfg))
    assert "(76 more)" in table
    assert "mast" in table
    assert "class 100" in table
    assert "class 50" not in table


def test_folders_follow_their_files(data_set, make_data_set) -> None:
    other = make_data_set("other", seed=1)
    folders = read_annotated_folders([data_set.json_file, other.json_file, other.images])
    assert [(folder.json_file, folder.image_root) for folder in folders] == [
        (data_set.json_file, None),
        (other.json_file, other.images),
    ]
    for paths in ([other.images], [other.json_file, other.images, data_set.images]):
        with pytest.raises(UserError, match="give it after the annotation file"):
            read_annotated_folders(paths)
    with pytest.raises(UserError, match="not a folder"):
        read_annotated_folder(data_set.json_file, data_set.images / "none")


@pytest.mark.parametrize(
    ("json_file", "images"),
    [
        ("bccd/annotations/train.json", "bccd/train"),
        ("coco_mini/annotations/instances_train2017.json", "coco_mini/train2017"),
        ("coco_person/annotations/person_val.json", "coco_person/val"),
    ],
)
def test_real_sets_have_no_errors(shared_data, cfg, json_file, images) -> None:
    annotated = read_annotated_folder(shared_data / json_file, shared_data / images)
    health = check_health(annotated, decode_images(annotated), [], cfg)
    assert health.count("error") == 0
    boxes = [entry for entry in annotated.content["annotations"] if not entry["iscrowd"]]
    assert sum(count.boxes for count in health.classes) == len(boxes)
