import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from se_detection.data.sample import choose, sample_coco

from ..helpers import raises


def deviations(chosen, classes):
    """How many images each class differs from its share, and the number of missing classes."""
    totals = Counter(class_ for present in classes.values() for class_ in present)
    found = Counter(class_ for id_ in chosen for class_ in classes[id_])
    share = len(chosen) / len(classes)
    return np.array([abs(found[class_] - share * total) for class_, total in totals.items()]), len(totals) - len(found)


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(), st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_every_class_is_present_if_possible(classes, count, seed) -> None:
    count = min(count, len(classes))
    chosen = choose(classes, count, seed)
    assert len(chosen) == count
    assert chosen <= classes.keys()
    assert chosen == choose(dict(reversed(classes.items())), count, seed)
    present = set().union(*classes.values())
    seen = set().union(*(classes[id_] for id_ in chosen))
    # Every image of a greedy search adds a class; the first adds as many as any image shows.
    assert len(seen) >= max(min(count, len(present)), *map(len, classes.values()), 0)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.1, 1))
def test_single_class_images_are_sampled_in_proportion(sizes, part) -> None:
    """A class of n images gets n times the share, rounded to images, and at least one.

    The rounding of the other classes may move it further.
    """
    classes = {(number, index): {number} for number, size in enumerate(sizes) for index in range(size)}
    numbered = dict(enumerate(classes.values()))
    count = max(len(sizes), round(part * len(numbered)))
    count = min(count, len(numbered))
    found = Counter(class_ for id_ in choose(numbered, count) for class_ in numbered[id_])
    # Small classes get more than their share, at the cost of the others.
    extra = sum(max(0, 1 - size * count / len(numbered)) for size in sizes)
    for number, size in enumerate(sizes):
        share = size * count / len(numbered)
        assert found[number] >= 1
        others = [other * count / len(numbered) for other in (*sizes[:number], *sizes[number + 1 :])]
        up, down = (sum(abs(direction(value) - value) for value in others) for direction in (math.ceil, math.floor))
        assert share - max(1, up) - extra - 1e-9 <= found[number] <= max(1, share + max(1, down) + 1e-9)


def test_real_classes_are_closer_to_their_shares_than_in_random_samples(shared_data) -> None:
    path = shared_data / "coco_mini" / "annotations" / "instances_train2017.json"
    truth = COCO(path)
    classes = {
        id_: {entry["category_id"] for entry in truth.imgToAnns[id_] if not entry["iscrowd"]} for id_ in truth.imgs
    }
    rng, count = random.Random(0), 80
    at_random = [deviations(rng.sample(sorted(classes), count), classes) for _ in range(50)]
    for seed in range(2):
        ours, missing = deviations(choose(classes, count, seed), classes)
        assert missing == 0
        assert ours.mean() < 1
        assert ours.max() <= 0.05 * len(classes)
        assert ours.mean() < 0.6 * min(random_.mean() for random_, _ in at_random)
    # 80 randomly sampled images lack about ten of the 80 classes.
    assert min(lost for _, lost in at_random) > 3


@pytest.fixture
def json_file(data_set):
    content = data_set.content
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    content["categories"].append({"id": 90, "name": "crab", "supercategory": "animal"})
    data_set.write()
    return data_set.json_file


def test_other_keys_are_kept(json_file) -> None:
    whole = json.loads(json_file.read_bytes())
    parts = sample_coco(json_file, 5)
    for (content, lost), size in zip(parts, (5, 7), strict=True):
        assert lost == []
        assert [key for key in content if content[key] != whole[key]] == ["images", "annotations"]
        ids = {image["id"] for image in content["images"]}
        assert len(ids) == size
        assert content["images"] == [image for image in whole["images"] if image["id"] in ids]
        assert content["annotations"] == [entry for entry in whole["annotations"] if entry["image_id"] in ids]
    of_each = [{image["id"] for image in part.content["images"]} for part in parts]
    assert of_each[0].isdisjoint(of_each[1])
    assert sample_coco(json_file, 5) == parts
    assert any(sample_coco(json_file, 5, seed) != parts for seed in (1, 2, 3))
    assert sample_coco(json_file, 12)[0].content == whole


def test_missing_classes_are_named(json_file, data_set) -> None:
    for index, annotation in enumerate(data_set.content["annotations"]):
        annotation["category_id"] = 1 + index // 3 % 3
    data_set.write()
    names = {1: "mast", 2: "buoy", 3: "gull"}
    for count, of_each in ((2, [1, 0]), (11, [0, 2])):
        for (content, lost), size in zip(sample_coco(json_file, count), of_each, strict=True):
            shown = {annotation["category_id"] for annotation in content["annotations"]}
            assert lost == [name for id_, name in names.items() if id_ not in shown]
            assert len(lost) == size


def test_wrong_counts_and_broken_files_are_refused(json_file, data_set) -> None:
    for count in (0, -1, 13):
        with raises("data.bad_count", count, json_file, 12):
            sample_coco(json_file, count)
    data_set.content["annotations"][3]["image_id"] = 4711
    data_set.write()
    with raises("data.unknown_id", json_file, 4711):
        sample_coco(json_file, 3)
