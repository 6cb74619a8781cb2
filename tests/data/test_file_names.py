import unicodedata

import pytest

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health
from se_detection.data.coco_sets import check_coco
from se_detection.data.file_names import find_renamed

from ..helpers import raises
from .conftest import assert_usable

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "möwe.png") for form in ("NFC", "NFD"))


def find(folder, files, names):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return find_renamed(folder, names)


@pytest.mark.parametrize(("file", "name"), [
    ("sub/a.png", "sub\\a.png"),
    ("a b.png", "a%20b.png"),
    ("a%20b.png", "a b.png"),
    ("A.PNG", "a.png"),
    (COMPOSED, DECOMPOSED),
    (DECOMPOSED, COMPOSED),
    ("a.png", "https://example.com/data/a.png?size=big"),
    ("a.png", "C:\\data\\a.png"),
    ("a.png", "/data/a.png"),
    ("a.png", "../images/a.png"),
    ("sub/a.png", "images/sub/a.png"),
    ("sub/a.png", "a.png"),
])  # fmt: skip
def test_the_file_of_a_name_is_found(tmp_path, file, name) -> None:
    assert find(tmp_path, [file, "b.png", "sub/c.png"], [name, "b.png", "missing.png"]) == {name: file}


@pytest.mark.parametrize(("files", "names", "expected"), [
    # Two files for a name, and two names for a file.
    (["train/a.png", "val/a.png"], ["a.png"], {}),
    (["a.png"], ["x/a.png", "y/a.png"], {}),
    # The file of another image, also under a name with ./, and a file in another folder.
    (["a.png"], ["A.png", "a.png"], {}),
    (["sub/a.png"], ["sub/A.png", "./sub/a.png"], {}),
    (["train/a.png"], ["val/a.png"], {}),
    (["train/a.png", "val/a.png"], ["x/val/a.png"], {"x/val/a.png": "val/a.png"}),
    (["a.png"], ["", "/", "http://[", "\0", "\ud800"], {}),
])  # fmt: skip
def test_only_names_that_map_one_to_one_are_found(tmp_path, files, names, expected) -> None:
    assert find(tmp_path, files, names) == expected


def test_names_are_reported_and_fixed(data_set, cfg) -> None:
    images = data_set.content["images"]
    expected = [image["file_name"] for image in images]
    images[0]["file_name"], images[1]["file_name"] = "/data/0_0.png", "images\\0_1.PNG"
    data_set.write()
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    decoded = decode_images(annotated)
    findings = {each["key"]: each for each in check_health(annotated, decoded, [], cfg)["findings"]}
    assert findings.keys() == {"images-renamed", "images-wrong-file_name"}
    assert findings["images-renamed"]["examples"][0].endswith("'/data/0_0.png' is '0_0.png'")
    fixed, changes = fix_annotations(annotated, decoded)
    assert [image["file_name"] for image in fixed.content["images"]] == expected
    assert list(changes.values()) == [["images[0] (id 100): '0_0.png'", "images[1] (id 101): '0_1.png'"]]
    assert_usable(fixed.content, data_set.json_file.with_name("fixed.json"), data_set.images, cfg)
    images[0]["file_name"] = "0_0.PNG"
    data_set.write()
    with raises("data.missing_images", "2 of 12", "'0_0.PNG'", "check-data --fix"):
        check_coco(data_set.json_file, data_set.images)
