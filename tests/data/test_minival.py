import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO
from pycocotools.coco import COCO

from se_detection.data import minival
from se_detection.data.minival import make_minival, read_image_ids

from ..helpers import raises

IDS = [int(id_) for id_ in np.random.default_rng(0).permutation(600_000)[:404]]
MINIVAL_IDS = sorted(IDS[::8])[:50]


@pytest.fixture(autouse=True)
def few_images(monkeypatch) -> None:
    """COCO's numbers, divided by 100; the test of the command has the real ones."""
    monkeypatch.setattr(minival, "COUNTS", dict(zip(minival.COUNTS, (50, 354), strict=True)))


@pytest.fixture(scope="module")
def content():
    """A hundredth of val2014, with COCO's file names; every second image has an annotation."""
    return {
        "info": {"year": 2014},
        "images": [{"id": id_, "file_name": f"COCO_val2014_{id_:012}.jpg", "height": 480, "width": 640} for id_ in IDS],
        "annotations": [
            {"id": 7 + id_, "image_id": id_, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
            for id_ in IDS[::2]
        ],
        "categories": [{"id": 1, "name": "person"}],
        "licenses": [{"id": 1}],
    }


@pytest.fixture(scope="module")
def inputs(content, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("coco")
    return write(folder / "instances_val2014.json", content), write(folder / "val2017.json", val2017())


def val2017(**changes):
    images = [{"id": id_, "file_name": f"{id_:012}.jpg"} for id_ in MINIVAL_IDS]
    return {"images": images, "categories": [], **changes}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_both_files_have_the_right_names_and_content(inputs, content, tmp_path) -> None:
    paths = make_minival(*inputs, tmp_path)
    splits = _PREDEFINED_SPLITS_COCO["coco"]
    expected_names = [Path(splits[f"coco_2014_{name}"][1]).name for name in ("minival", "valminusminival")]
    assert [path.name for path in paths] == expected_names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected_names)
    mini, rest = map(COCO, paths)
    assert set(mini.getImgIds()) == set(MINIVAL_IDS)
    assert len(rest.getImgIds()) == 354
    assert set(rest.getImgIds()) == set(IDS) - set(MINIVAL_IDS)
    whole = COCO(inputs[0])
    for half in (mini, rest):
        assert {key: half.dataset[key] for key in half.dataset if key not in ("images", "annotations")} == {
            key: content[key] for key in ("info", "categories", "licenses")
        }
        assert half.anns == {
            id_: whole.anns[id_] for id_, entry in whole.anns.items() if entry["image_id"] in half.imgs
        }
        assert all(half.imgs[id_] == whole.imgs[id_] for id_ in half.imgs)
    assert len(mini.anns) + len(rest.anns) == len(whole.anns)


def test_outputs_that_exist_or_are_read_are_refused(inputs, tmp_path) -> None:
    own = tmp_path / "instances_valminusminival2014.json"
    own.write_text("mine")
    with raises("output.exists", own):
        make_minival(*inputs, tmp_path)
    with raises("output.is_input", own):
        make_minival(inputs[0], own, tmp_path, overwrite=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_wrong_files_are_refused_by_their_counts(inputs, content, tmp_path) -> None:
    val2014, ids = inputs
    less = write(tmp_path / "less.json", {**content, "images": content["images"][:-1], "annotations": []})
    few = write(tmp_path / "few.json", val2017(images=val2017()["images"][1:]))
    foreign = write(tmp_path / "foreign.json", [*MINIVAL_IDS[2:], 700_001, 700_000])
    lost = [{**content["annotations"][0], "image_id": 700_000}]
    broken = write(tmp_path / "broken.json", {**content, "annotations": lost})
    for pair, code, *named in (
        ((less, ids), "data.not_coco_val", less, 403, 404),
        ((val2014, few), "data.not_coco_val", few, 49, 50),
        ((val2014, foreign), "data.not_coco_val", foreign, ": 2, such as", 700_000, val2014),
        ((broken, ids), "data.unknown_id", broken, 700_000),
    ):
        with raises(code, *named):
            make_minival(*pair, tmp_path)
    assert not list(tmp_path.glob("*minival2014*"))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"images": val2017()["images"]}),
        json.dumps(MINIVAL_IDS),
        "\r\n".join(f"{id_:012}.jpg" for id_ in MINIVAL_IDS) + "\r\n",
        "\n".join(f"./images/val2017/{id_:012}.jpg" for id_ in MINIVAL_IDS),
        "\n".join(f"COCO_val2014_{id_:012}.jpg" for id_ in MINIVAL_IDS),
        json.dumps([f"{id_:012}.jpg" for id_ in MINIVAL_IDS]),
    ],
)
def test_image_ids_are_read_from_common_formats(tmp_path, text) -> None:
    path = tmp_path / "ids"
    path.write_text(text)
    assert read_image_ids(path) == set(MINIVAL_IDS)


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        (b"139\nfoo\n", "data.bad_id", "'foo'"),
        (b"139\n285\n139\n", "data.bad_id", "139 appears twice"),
        (b"\xff\xfe1", "file.unreadable", "utf-8"),
        (b'{"annotations": []}', "data.not_coco", "'images'"),
        (b'{"images": [{"id": "139"}]}', "data.bad_entry", "images[0]"),
        (b'{"images": [', "file.not_json", ""),
    ],
)
def test_files_without_image_ids_are_refused(tmp_path, data, code, named) -> None:
    path = tmp_path / "ids"
    path.write_bytes(data)
    with raises(code, path, named):
        read_image_ids(path)
    with raises("file.unreadable", tmp_path / "none"):
        read_image_ids(tmp_path / "none")
