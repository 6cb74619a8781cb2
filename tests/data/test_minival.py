import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO
from pycocotools.coco import COCO

from se_detection.data.minival import make_minival, read_image_ids
from se_detection.errors import UserError

IDS = [int(id_) for id_ in np.random.default_rng(0).permutation(600_000)[:40504]]
MINIVAL_IDS = sorted(IDS[::8])[:5000]


@pytest.fixture(scope="module")
def content():
    """As many images as val2014, with COCO's file names; every second image has an annotation."""
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


def refused(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        make_minival(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_files_have_the_right_names_and_content(inputs, content, tmp_path) -> None:
    paths = make_minival(*inputs, tmp_path)
    splits = _PREDEFINED_SPLITS_COCO["coco"]
    expected_names = [Path(splits[f"coco_2014_{name}"][1]).name for name in ("minival", "valminusminival")]
    assert [path.name for path in paths] == expected_names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected_names)
    minival, rest = map(COCO, paths)
    assert set(minival.getImgIds()) == set(MINIVAL_IDS)
    assert len(rest.getImgIds()) == 35504
    assert set(rest.getImgIds()) == set(IDS) - set(MINIVAL_IDS)
    whole = COCO(inputs[0])
    for half in (minival, rest):
        assert {key: half.dataset[key] for key in half.dataset if key not in ("images", "annotations")} == {
            key: content[key] for key in ("info", "categories", "licenses")
        }
        assert half.anns == {
            id_: whole.anns[id_] for id_, entry in whole.anns.items() if entry["image_id"] in half.imgs
        }
        assert all(half.imgs[id_] == whole.imgs[id_] for id_ in half.imgs)
    assert len(minival.anns) + len(rest.anns) == len(whole.anns)


def test_existing_files_are_not_overwritten_by_default(inputs, tmp_path) -> None:
    (tmp_path / "instances_valminusminival2014.json").write_text("mine")
    assert "instances_valminusminival2014.json already exists" in refused(*inputs, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    make_minival(*inputs, tmp_path, overwrite=True)
    assert len(COCO(tmp_path / "instances_valminusminival2014.json").imgs) == 35504
    # An input is never overwritten.
    message = refused(inputs[0], tmp_path / "instances_minival2014.json", tmp_path, overwrite=True)
    assert "both read and written" in message
    assert "there is no folder" in refused(*inputs, tmp_path / "none")


def test_wrong_files_are_refused_by_their_counts(inputs, content, tmp_path) -> None:
    val2014, ids = inputs
    assert "5000 images instead of val2014's 40504" in refused(ids_only(tmp_path, "few"), ids, tmp_path)
    assert "40504 images instead of val2017's 5000" in refused(ids, val2014, tmp_path)
    less = write(tmp_path / "less.json", val2017(images=val2017()["images"][1:]))
    assert f"{less}: 4999 images" in refused(val2014, less, tmp_path)
    foreign = write(tmp_path / "foreign.json", [*MINIVAL_IDS[2:], 700_001, 700_000])
    assert "2 of its image ids are not in" in refused(val2014, foreign, tmp_path)
    assert "700000" in refused(val2014, foreign, tmp_path)
    lost = [{**content["annotations"][0], "image_id": 700_000}, *content["annotations"][1:]]
    broken = write(tmp_path / "broken.json", {**content, "annotations": lost})
    assert "names image 700000" in refused(broken, ids, tmp_path)
    assert not list(tmp_path.glob("*minival2014*"))


def ids_only(folder, name):
    return write(folder / f"{name}.json", {**val2017(), "annotations": []})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(val2017(annotations=[])),
        json.dumps({"images": val2017()["images"]}),
        json.dumps(MINIVAL_IDS),
        "\n".join(map(str, MINIVAL_IDS)),
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
    ("data", "expected"),
    [
        (b"139\nfoo\n", "'foo' is not an image id"),
        (b"139\n285\n139\n", "image id 139 appears more than once"),
        (b"\xff\xfe1", "not text in UTF-8"),
        (b'{"annotations": []}', "no list 'images'"),
        (b'{"images": [{"id": "139"}]}', "images[0]"),
        (b'{"images": [', "not JSON"),
    ],
)
def test_files_without_image_ids_are_refused(tmp_path, data, expected) -> None:
    path = tmp_path / "ids"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_image_ids(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    with pytest.raises(UserError, match="No such file"):
        read_image_ids(tmp_path / "none")
