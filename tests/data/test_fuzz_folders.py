"""Damaged label files, lists and XML files of a folder are refused in one line, or give valid annotations."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_detection.data.coco_format import ANNOTATION, CATEGORY, IMAGE, problems
from se_detection.data.read_folder import find_data

from ..fuzzing import TEXTS, Tally, examples
from .exports import write_voc, write_yolo

pytestmark = pytest.mark.slow

WORDS = [
    *(
        "0",
        "1",
        "2",
        "-1",
        "0.5",
        "1.01",
        "nan",
        "inf",
        "1e999",
        "0,5",
        "1_0",
        "٣",
        "²",
        "\n",
        "\t",
        "#",
        "0.1 " * 500,
    ),
    *(
        "<object>",
        "</object>",
        "<name>car</name>",
        "<bndbox>",
        "<xmin>9</xmin>",
        "<size>",
        "<!--",
        "]]>",
        "&amp;",
        "\x00",
    ),
    *(
        "names: ",
        "train: ",
        "val: ",
        "path: ",
        "- ",
        "[",
        "{",
        "}",
        "*a",
        "&a ",
        "images",
        "../images",
        "!!python/name:os.system",
    ),
    *(text for text in TEXTS if text.isprintable() or text == "\0"),
]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    yolo, voc = tmp_path_factory.mktemp("yolo"), tmp_path_factory.mktemp("voc")
    write_yolo(yolo / "images", yolo / "labels")
    (yolo / "data.yaml").write_text("train: images\nnames: [car, bicycle]\n")
    write_voc(voc / "JPEGImages", voc / "Annotations")
    (voc / "ImageSets/Main").mkdir(parents=True)
    (voc / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    return {"yolo": yolo, "voc": voc}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("yolo", "labels/a.txt"),
        ("yolo", "data.yaml"),
        ("voc", "Annotations/a.xml"),
        ("voc", "ImageSets/Main/train.txt"),
    ],
)
@examples(60)
@given(text=texts, place=st.integers(0, 200), cut=st.integers(0, 40))
def test_damaged_files(folders, kind, name, text, place, cut) -> None:
    file = folders[kind] / name
    whole = file.read_text()
    file.write_text(whole[:place] + text + whole[place + cut :], errors="ignore")
    try:
        part = Tally(name).refused(lambda: find_data(folders[kind]).read("train"))
    finally:
        file.write_text(whole)
    content = part.content if part else {"images": [], "annotations": [], "categories": []}
    for entries, rules in (("images", IMAGE), ("annotations", ANNOTATION), ("categories", CATEGORY)):
        for entry in content[entries]:
            # A box may be too large or reversed, which the checks report.
            assert [each for each in problems(entry, rules) if each.key not in ("bbox", "name")] == []
    json.dumps(content)
