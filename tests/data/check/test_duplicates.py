import shutil

import numpy as np
import pytest
from PIL import Image

from se_detection.data.check.annotated_folder import read_annotated_folder
from se_detection.data.check.duplicates import find_overlap, same_files

from ..conftest import save_noise


@pytest.fixture
def smooth_image(tmp_path):
    """A smooth image, which compression and resizing hardly change."""
    grey = np.random.default_rng(5).integers(0, 255, (6, 8), dtype=np.uint8)
    return Image.fromarray(grey).resize((320, 240), Image.Resampling.BICUBIC).convert("RGB")


def load(data_set, with_images=True):
    data_set.write()
    return read_annotated_folder(data_set.json_file, data_set.images)._replace(
        **({} if with_images else {"image_root": None})
    )


def overlap(one, two, **options):
    """The pairs of each kind, without empty kinds."""
    return {key: pairs for key, pairs in find_overlap(load(one), load(two, **options)).items() if pairs}


@pytest.fixture
def pair(make_data_set):
    return make_data_set("one"), make_data_set("two", seed=1)


def test_different_images_do_not_overlap(pair) -> None:
    one, two = pair
    assert overlap(one, two) == {}
    # Also if the images have the same names.
    for mine, theirs in zip(one.content["images"], two.content["images"], strict=True):
        (two.images / theirs["file_name"]).rename(two.images / mine["file_name"])
        theirs["file_name"] = mine["file_name"]
    assert overlap(one, two) == {}
    names = [image["file_name"] for image in one.content["images"]]
    assert overlap(one, two, with_images=False) == {"same-name": [(name, name) for name in names]}
    (two.images / "0_3.png").unlink()
    assert overlap(one, two) == {"same-name": [("0_3.png", "0_3.png")]}


def test_a_renamed_copy_has_the_same_content(pair) -> None:
    one, two = pair
    shutil.copy(one.images / "0_4.png", two.images / "1_7.png")
    assert overlap(one, two) == {"same-content": [("0_4.png", "1_7.png")]}
    # The same pixels in another file.
    save_noise(two.images / "1_0.png", 60, 40, seed=0, compress_level=0)
    assert overlap(one, two)["near-look"] == [("0_0.png", "1_0.png")]


@pytest.mark.parametrize(
    "save",
    [
        lambda image, path: image.resize((200, 150)).save(path, quality=60),
        lambda image, path: image.save(path, progressive=True, quality=30),
        # Rotated in the file, and back by EXIF.
        lambda image, path: image.transpose(Image.Transpose.ROTATE_90).save(path, exif=turned_by(6)),
    ],
)
def test_resized_and_compressed_copies_are_found(pair, smooth_image, save) -> None:
    one, two = pair
    smooth_image.save(one.images / "0_4.jpg", quality=95)
    save(smooth_image, two.images / "1_7.jpg")
    one.content["images"][4]["file_name"] = "0_4.jpg"
    two.content["images"][7]["file_name"] = "1_7.jpg"
    assert overlap(one, two) == {"near-look": [("0_4.jpg", "1_7.jpg")]}
    (two.images / "sub").mkdir()
    (two.images / "1_7.jpg").rename(two.images / "sub" / "0_4.jpg")
    two.content["images"][7]["file_name"] = "sub/0_4.jpg"
    assert overlap(one, two) == {"same-look": [("0_4.jpg", "sub/0_4.jpg")]}


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_uniform_and_broken_images_are_not_compared(pair) -> None:
    one, two = pair
    Image.new("RGB", (60, 40)).save(one.images / "0_0.png")
    Image.new("RGB", (61, 40)).save(two.images / "1_0.png")
    (one.images / "0_1.png").write_bytes(b"nothing")
    (two.images / "1_1.png").write_bytes(b"nothing at all")
    assert overlap(one, two) == {}


def test_files_are_compared_by_all_their_bytes(tmp_path) -> None:
    data = {"a": b"x" * 9000, "b": b"x" * 8999 + b"y", "c": b"x" * 9000, "d": b"x", "e": b"z", "f": b"x"}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "g").symlink_to(tmp_path / "e")
    assert same_files({name: tmp_path / name for name in "abcdefg"}) == [["a", "c"], ["d", "f"], ["e", "g"]]


@pytest.mark.slow
def test_shared_images_of_two_real_sets_are_found(shared_data) -> None:
    """About 180 images of one set are in the other, resized and compressed again; COCO's names identify them."""
    mini = shared_data / "coco_mini"
    val = read_annotated_folder(mini / "annotations" / "instances_val2017.json", mini / "val2017")
    names = {image["file_name"] for image in val.content["images"]}
    for name in ("train", "val"):
        folder = shared_data / "coco_person"
        person = read_annotated_folder(folder / "annotations" / f"person_{name}.json", folder / name)
        expected = names & {image["file_name"] for image in person.content["images"]}
        assert expected
        found = find_overlap(val, person)
        assert sorted(found.pop("same-look")) == sorted((name, name) for name in expected)
        assert not any(found.values())
